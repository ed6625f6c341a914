"""Training proportional to what is kept: a fresh process, an address space in which the dense weight does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "memory.py"


ONLY_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and limits the address space as Linux does"
)


def measured(*options: str) -> list[dict[str, Any]]:
    """What two fresh processes tell.

    The first process of a machine tunes and compiles besides, and where the heap's holes lie moves a peak by a tenth: two
    processes train, the leaner one is judged.
    """
    # Coverage's own tracing would count as the network's memory.
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    told = []
    for _ in range(2):
        command = [sys.executable, str(SCRIPT), *options]
        result = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        told.append(json.loads(result.stdout))
    return told


@pytest.mark.slow
@ONLY_LINUX
def test_a_network_whose_dense_weight_cannot_be_allocated_trains_in_memory_proportional_to_what_is_kept():
    told = measured("--limit", "900", "--steps", "3")
    for each in told:
        assert each["dense_weight"] == "cannot be allocated"
        assert each["losses"][-1] < each["losses"][0]
        assert each["peak_above_baseline"] < each["dense_form"] / 20
    assert min(each["ratio"] for each in told) <= 1.6


@pytest.mark.slow
@ONLY_LINUX
def test_its_topology_moves_by_dense_gradients_that_never_exist():
    told = measured("--limit", "900", "--steps", "4", "--moving", "rigl:2")
    for each in told:
        assert each["dense_weight"] == "cannot be allocated"
        assert each["updates"] == 2
        assert each["losses"][-1] < each["losses"][0]
    assert min(each["ratio"] for each in told) <= 1.8
