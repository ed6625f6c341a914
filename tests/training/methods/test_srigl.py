"""SRigL on a few neurons: who is salient enough to live, and what each of them keeps."""

from __future__ import annotations

import pytest
import torch

from pollard.training.methods.srigl import srigl
from small_weights import STORAGES, after, change, seen, small_weight

NAN = torch.nan
EMPTY = [NAN] * 8


def salient(share):
    return srigl(0.25, 1000, salient=share)


def row(*weights):
    return [*weights, *[NAN] * (8 - len(weights))]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_neuron_is_measured_against_the_fan_in_of_those_that_live(storage):
    """Lasby et al. 2024: ablated with fewer than max(1, gamma k) salient weights, where k is the fan-in of the layer.

    Two of four neurons have been ablated before: k = 4, while their mean is 2. With gamma = 0.5 a neuron needs 2.
    """
    weight = small_weight([row(9, 8, 7, 6), row(5, 0.1, 0.1, 0.1), EMPTY, EMPTY], storage=storage)
    gradient = torch.zeros(4, 8)
    gradient[0, 4:7] = 3.0
    seen(weight, gradient.tolist())
    # Salient: the five largest |w| and the three largest gradients: 7 in the first neuron, 1 in the second.
    assert after(weight, salient(0.5).exchange(change(weight, 5, 8))) == list(range(8))


def test_just_enough_salient_weights_are_enough():
    weight = small_weight([row(9, 8, 7, 6), row(5, 4, 0.1, 0.1), EMPTY, EMPTY])
    gradient = torch.zeros(4, 8)
    gradient[0, 4:6], gradient[1, 6] = 3.0, 1.0
    seen(weight, gradient.tolist())
    # Two of a fan-in of 4 live, and both keep four again: the largest that stay, then the largest gradients.
    assert after(weight, salient(0.5).exchange(change(weight, 6, 8))) == [0, 1, 2, 3, 8, 9, 10, 14]
    assert after(weight, salient(0.51).exchange(change(weight, 6, 8))) == list(range(8))


def test_a_neuron_without_any_salient_weight_is_ablated_however_small_the_share():
    weight = small_weight([row(9, 8), row(0.2, 0.1)])
    seen(weight, [[0, 0, 2, 1, 0, 0, 0, 0], [0] * 8])
    assert after(weight, salient(1e-3).exchange(change(weight, 2, 4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("share, last", [(0.0, False), (0.9, True)])
def test_none_is_ablated_in_the_last_layer_or_where_nobody_asks(share, last):
    weight = small_weight([row(9, 8), row(0.2, 0.1)])
    seen(weight, [[0, 0, 2, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.3, 0.4, 0]])
    # Fan-in 2 each: the first neuron keeps both, the second gets the places of its largest gradients.
    assert after(weight, salient(share).exchange(change(weight, 2, 4, last=last))) == [0, 1, 13, 14]


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_bring_an_ablated_neuron_back(storage):
    weight = small_weight([row(3, 2), EMPTY, row(5, 4)], storage=storage)
    gradient = torch.full((3, 8), 0.5)
    gradient[1, 6:] = 9.0
    seen(weight, gradient.tolist())
    # The place that the largest gradient takes makes the second neuron salient: all three share four weights, one each.
    kept = after(weight, salient(0.3).exchange(change(weight, 3, 4)))
    assert kept == [0, 14, 16]
    # Of a fan-in of two it takes two where the share is 0.9: one gradient is too few, and so is what is left of the first neuron.
    assert after(weight, salient(0.9).exchange(change(weight, 3, 4))) == [16, 17, 18, 19]
    assert after(weight, salient(0.9).exchange(change(weight, 2, 4))) == [14, 15, 16, 17]


def test_what_no_gradient_speaks_for_stays_ablated():
    weight = small_weight([row(3, 2), EMPTY, row(5, 4)])
    gradient = torch.full((3, 8), 0.5)
    gradient[1] = 0.1
    seen(weight, gradient.tolist())
    assert after(weight, salient(0.3).exchange(change(weight, 3, 4))) == [0, 1, 16, 17]


def test_where_none_would_live_all_do():
    weight = small_weight([row(2, 1), row(4, 3)])
    seen(weight, [[0.0] * 8] * 2)
    assert after(weight, salient(3.0).exchange(change(weight, 4, 4))) == [0, 1, 8, 9]


@pytest.mark.parametrize("target, each", [(5, 2), (1, 1), (16, 8)])
def test_a_fan_in_is_the_whole_share_of_each_but_one_at_least(target, each):
    weight = seen(small_weight([row(1, 2, 3), row(4, 5, 6)]), [[1.0] * 8] * 2)
    kept = after(weight, salient(0.0).exchange(change(weight, min(target, 6), target)))
    assert [sum(position // 8 == neuron for position in kept) for neuron in (0, 1)] == [each, each]


def test_rows_are_evened_before_the_first_step():
    weight = small_weight([row(1, 5, 3, 4, 2), row(7), row(6, 8, 9)])
    ((stays, grown),) = salient(0.3).begin({"small": weight}, lambda name: torch.Generator().manual_seed(0)).values()
    # Nine weights, three a neuron: the largest of the first, all of the others, and two places drawn for the second.
    assert weight.topology.positions(stays).tolist() == [1, 2, 3, 8, 16, 17, 18]
    assert len(grown) == 2
    assert set(grown.tolist()) <= set(range(9, 16))
