"""Top-KAST on a few weights: what the forward pass reads, what decays, and what a dense memory brings back."""

from __future__ import annotations

import pytest
import torch

from pollard.training.methods.top_kast import top_kast
from small_weights import STORAGES, after, change, seen, small_weight

NAN = torch.nan


def kast(**options):
    """Of ten weights a fifth is read, and two fifths are trained."""
    return top_kast(0.2, 100, every=10, **options)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_forward_pass_reads_the_largest_until_all_that_is_left_is_read(storage):
    weight = small_weight([[1.0, -4.0, 3.0, 2.0, NAN]], storage=storage)
    kast().after_update({"small": weight}, 0)
    assert weight.active().tolist() == [False, True, True, False]
    assert weight.layer(torch.ones(1, 5, dtype=torch.float64)).item() == -1.0
    kast().after_update({"small": weight}, 99)
    assert weight.active() is not None
    kast().after_update({"small": weight}, 100)
    assert weight.active() is None


def test_whole_grains_are_read():
    weight = small_weight([[1.0, 5.0, 3.0, 0.0], [4.0, -0.5, 3.0, 2.0]], pattern="v2")
    kast().after_update({"small": weight}, 0)
    assert weight.active().tolist() == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_read_decays_faster_by_one_over_the_density(storage):
    """Jayakumar et al. 2020: half the penalty times |w|^2 for what is read, over the density for the others."""
    weight, method = small_weight([[1.0, -4.0, 3.0, 2.0, NAN]], storage=storage), kast(penalty=0.01)
    method.after_update({"small": weight}, 0)
    seen(weight, [[0.0] * 5])
    before = weight.gradient().clone()
    method.before_step({"small": weight}, 99)
    expected = torch.tensor([0.01 / 0.2 * 1.0, 0.01 * -4.0, 0.01 * 3.0, 0.01 / 0.2 * 2.0], dtype=torch.float64)
    torch.testing.assert_close(weight.gradient() - before, expected)
    method.before_step({"small": weight}, 100)
    torch.testing.assert_close(weight.gradient() - before, expected)


def test_nothing_decays_where_there_is_no_gradient_or_all_is_read():
    weight, method = small_weight([[1.0, -4.0]]), kast(penalty=0.01)
    method.before_step({"small": weight}, 1)
    assert weight.gradient() is None
    method.after_update({"small": weight}, 0)
    method.before_step({"small": weight}, 1)
    assert weight.gradient() is None
    weight.use(None)
    seen(weight, [[2.0, 3.0]])
    method.before_step({"small": weight}, 1)
    assert weight.gradient().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("pattern", ["unstructured", "v2"])
def test_a_dense_memory_is_drawn_as_large_as_what_is_kept(pattern):
    weight = small_weight([[3.0] * 60 + [NAN] * 140] * 2, pattern=pattern)
    method = kast(dense_memory=True)
    ((stays, grown),) = method.begin({"small": weight}, lambda name: torch.Generator().manual_seed(1)).values()
    drawn = torch.randn(2, 200, generator=torch.Generator().manual_seed(1)).double() * 3.0
    drawn[:, :60] = 3.0
    torch.testing.assert_close(weight.memory, drawn, rtol=1e-6, atol=0.0)
    # The largest of all, as many as there were, ties by position.
    scores = drawn.abs().view(-1, weight.size, 200).sum(1).flatten()
    best = scores.argsort(descending=True, stable=True)[: weight.topology.grains].sort().values
    assert after(weight, (stays, grown)) == best.tolist()
    assert not torch.isin(grown, weight.topology.positions()).any()


def test_without_a_dense_memory_nothing_moves_before_the_first_step():
    weight = small_weight([[1.0, NAN]])
    assert kast().begin({"small": weight}, lambda name: torch.Generator()) == {}
    assert weight.memory is None


@pytest.mark.parametrize("storage", STORAGES)
def test_the_largest_of_what_is_trained_and_remembered_are_kept(storage):
    weight = small_weight([[1.0, -0.1, NAN, NAN]], storage=storage)
    weight.memory = torch.tensor([[9.0, 9.0, -0.5, 0.05]], dtype=torch.float64)  # of what is kept, the values count
    stays, grown = kast(dense_memory=True).exchange(change(weight, 1, 2))
    assert (stays.tolist(), grown.tolist()) == ([True, False], [2])
    assert weight.memory.tolist() == [[1.0, -0.1, -0.5, 0.05]]
    stays, grown = kast(dense_memory=True).exchange(change(weight, 1, 3))
    assert (stays.tolist(), grown.tolist()) == ([True, True], [2])


def test_without_a_memory_it_drops_by_magnitude_and_grows_as_many():
    weight = small_weight([[1.0, -0.1, NAN, NAN]])
    stays, grown = kast().exchange(change(weight, 1, 2))
    assert stays.tolist() == [True, False]
    assert len(grown) == 1
    assert grown[0] > 0
