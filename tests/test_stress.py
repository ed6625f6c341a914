"""Ordinary Python cannot crash a process by way of a sparse layer, nor make it compute something else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import ordeals

OPEN = pytest.mark.xfail(strict=False, reason="kernels keep raw addresses, and a prepared call for every batch size")
ORDEALS = (
    pytest.param(ordeals.writes_to_indices, marks=OPEN),
    pytest.param(ordeals.writes_to_buffers, marks=OPEN),
    ordeals.writes_to_values,
    pytest.param(ordeals.sharing, marks=OPEN),
    pytest.param(ordeals.hogwild, marks=OPEN),
    pytest.param(ordeals.batch_sizes, marks=OPEN),
)


@pytest.mark.parametrize("ordeal", ORDEALS, ids=lambda ordeal: ordeal.__name__)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_layer_survives(ordeal, threads):
    code = f"import ordeals, torch; torch.set_num_threads({threads}); ordeals.{ordeal.__name__}()"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"at {last}: exit status {done.returncode}\n{done.stderr[-2000:]}"
