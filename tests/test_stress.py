"""Ordinary Python cannot crash a process by way of a sparse layer, nor make it compute something else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import ordeals

# Each with one thread, and those that kernels share work in with two.
ORDEALS = [
    (ordeals.writes_to_indices, 1),
    (ordeals.writes_to_indices, 2),
    (ordeals.writes_to_buffers, 1),
    (ordeals.writes_to_values, 2),
    (ordeals.sharing, 1),
    (ordeals.sharing, 2),
    (ordeals.hogwild, 1),
    (ordeals.batch_sizes, 1),
]


@pytest.mark.parametrize("ordeal, threads", ORDEALS, ids=lambda each: getattr(each, "__name__", str(each)))
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
