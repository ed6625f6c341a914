"""Sparse momentum on a few weights: what the momentum of a weight is, and how layers share by it."""

from __future__ import annotations

import pytest
import torch

from pollard.formats.matrix import SparseMatrix
from pollard.training.methods.momentum import sparse_momentum
from pollard.training.weights import MaskedWeight
from small_weights import STORAGES, small_weight

NAN = torch.nan
KEPT = [[1.0, NAN], [2.0, 3.0]]


def with_state(weight, **state):
    """`weight` with entries `(nnz,)` as the optimizer's state of it."""
    held = weight.optimizer.state[weight.parameter]
    for key, entries in state.items():
        numbers = torch.tensor(entries, dtype=torch.float64)
        masked = isinstance(weight, MaskedWeight)
        held[key] = SparseMatrix(numbers, weight.topology).to_dense() if masked else numbers
    return weight


@pytest.mark.parametrize("storage", STORAGES)
def test_the_momentum_of_adam_is_its_mean_over_its_root_mean_square(storage):
    """Dettmers & Zettlemoyer 2019: m / (sqrt(v) + 1e-8)."""
    weight = with_state(
        small_weight(KEPT, storage=storage, optimizer=torch.optim.Adam),
        exp_avg=[2.0, -3e-4, 1e-8],
        exp_avg_sq=[16.0, 1e-6, 1e-16],
    )
    expected = torch.tensor([2 / (4 + 1e-8), -3e-4 / (1e-3 + 1e-8), 1e-8 / (1e-8 + 1e-8)], dtype=torch.float64)
    torch.testing.assert_close(weight.momentum(), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_momentum_of_sgd_is_its_buffer(storage):
    weight = with_state(small_weight(KEPT, storage=storage), momentum_buffer=[0.5, -2.0, 1e-9])
    assert weight.momentum().tolist() == [0.5, -2.0, 1e-9]


def counts(fraction, targets, **weights):
    return sparse_momentum(0.5, 100).counts(weights, targets, fraction)


def test_layers_share_what_has_gone_by_the_mean_magnitude_of_their_momentum():
    some = with_state(small_weight([[1.0] * 4 + [NAN] * 12]), momentum_buffer=[3.0, -3.0, 3.0, -3.0])
    more = with_state(small_weight([[1.0] * 8 + [NAN] * 24]), momentum_buffer=[1.0, -1.0] * 4)
    # Half goes: 2 and 4. Of these 6, shares of 3 to 1: 4.5 and 1.5; the largest remainder, the first, is rounded up.
    assert counts(0.5, {"some": 4, "more": 8}, some=some, more=more) == {"some": (2, 7), "more": (4, 5)}


def test_a_layer_without_momentum_gets_nothing_and_all_alike_where_none_has_any():
    still, moving = (small_weight([[1.0] * 4 + [NAN] * 12], optimizer=torch.optim.Adam) for _ in range(2))
    targets = {"still": 4, "moving": 4}
    assert counts(0.5, targets, still=still, moving=moving) == {"still": (2, 4), "moving": (2, 4)}
    with_state(still, exp_avg=[0.0] * 4, exp_avg_sq=[1.0] * 4)
    with_state(moving, exp_avg=[1e-3] * 4, exp_avg_sq=[1.0] * 4)
    assert counts(0.5, targets, still=still, moving=moving) == {"still": (2, 2), "moving": (2, 6)}


def test_no_layer_grows_beyond_99_hundredths_of_what_is_free():
    full = with_state(small_weight([[1.0] * 100 + [NAN] * 100]), momentum_buffer=[1.0] * 100)
    rest = with_state(small_weight([[1.0] * 400 + [NAN] * 400]), momentum_buffer=[0.0] * 400)
    # 50 + 200 go; the first layer has 150 free, of which 148 are 99 %; the others stay with the second.
    assert counts(0.5, {"full": 100, "rest": 400}, full=full, rest=rest) == {"full": (50, 198), "rest": (200, 302)}


@pytest.mark.parametrize("kept, gone", [(80, 40), (90, 5), (82, 9), (100, 0)])
def test_a_nearly_dense_layer_drops_half_of_what_it_could_grow_at_most(kept, gone):
    weight = small_weight([[1.0] * kept + [NAN] * (100 - kept)], optimizer=torch.optim.Adam)
    assert counts(0.5, {"weight": kept}, weight=weight) == {"weight": (kept - gone, kept)}
