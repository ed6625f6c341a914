"""The whole promise, in a fresh process whose address space no dense weight fits: born, pruned, trained, saved, loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "never_dense.py"
ONLY_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and limits the address space as Linux does"
)


def lived(*options: str) -> dict[str, Any]:
    """What a fresh process tells."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, str(SCRIPT), *options]
    result = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


@pytest.mark.slow
@ONLY_LINUX
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_allocated_is_born_pruned_trained_by_a_moving_topology_saved_and_loaded():
    told = lived(
        "--widths=4096-16384-10", "--density=0.002", "--limit=700", "--batch=32", "--steps=8", "--moving=rigl:1", "--rate=0.3"
    )  # fmt: skip
    assert told["dense_weight"] == "cannot be allocated"
    assert told["kept"] == round(0.002 * told["weights"])
    assert told["losses"][-1] < told["losses"][0]
    assert told["updates"] >= 1
    peaks = [each["peak"] for each in told.values() if isinstance(each, dict)]
    assert max(peaks) < told["dense_bytes"] / 2


@pytest.mark.slow
@ONLY_LINUX
def test_its_peak_does_not_grow_with_the_dense_size():
    small, large = (
        lived(f"--widths=256-{hidden}-10", f"--density={2**20 / hidden / 256 / 16}", "--batch=16", "--steps=0")
        for hidden in (1 << 14, 1 << 17)
    )
    assert large["weights"] > 7 * small["weights"]
    assert large["kept"] == pytest.approx(small["kept"], rel=0.01)
    # Activations, of which one axis is the batch, grow; weights do not.
    assert large["pruned"]["peak"] - small["pruned"]["peak"] < large["dense_bytes"] / 4
