"""Kernels touch nothing beyond their operands and results: each ends where a page begins that nobody may touch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from guarded import guarded
from parity import DTYPES, HALVES
from pollard.formats.topology import Topology
from pollard.kernels.products import dispatch, results


def copied(tensor):
    """It, in such memory, with its strides."""
    return guarded(tensor.shape, tensor.stride(), tensor.dtype).copy_(tensor)


@pytest.fixture
def _guarded_results(monkeypatch):
    monkeypatch.setattr(
        results, "room", lambda size, stride, dtype=torch.float32: lambda _: guarded(size, stride, dtype)
    )


@pytest.mark.pairwise
@pytest.mark.usefixtures("_guarded_results")
@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("batch", [*range(1, 10), 16, 17, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["unstructured", "half", "v2", "v4", "v16", "b4x4", "b1x9", "2:4"])
def test_nothing_beyond_is_touched(isa, pattern, dtype, batch, rows, features_first):
    density = {"2:4": 0.5, "half": 0.5}.get(pattern, 0.11)
    pattern = "unstructured" if pattern == "half" else pattern
    topology = Topology.random((48, 180), density, pattern, torch.Generator().manual_seed(batch))
    values, bias = copied(torch.randn(topology.nnz).to(dtype)), copied(torch.randn(48).to(dtype))

    def operand(features):
        made = torch.randn(features, batch).t() if features_first else torch.randn(batch, features)
        return copied(made.to(dtype))

    x, grad = operand(180), operand(48)
    dispatch.forward(x, values, topology, bias, activation="relu", rows=rows)
    dispatch.input_grad(grad, values, topology, rows=rows)
    dispatch.value_grad(grad, x, topology)


@pytest.mark.pairwise
@pytest.mark.usefixtures("_guarded_results")
@pytest.mark.parametrize("density", [0.1, 0.6])
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("width", [5000, 8211])
def test_nor_beyond_parts_of_longer_rows(isa, width, dtypes, batch, density):
    topology = Topology.random((24, width), density, "unstructured", torch.Generator().manual_seed(batch))
    values, x = copied(torch.randn(topology.nnz).to(dtypes[1])), torch.randn(batch, width + 30).to(dtypes[0])
    part = copied(x[:, :width])
    assert torch.equal(dispatch.forward(part, values, topology), dispatch.forward(part.contiguous(), values, topology))


READ = "import ctypes, torch; from guarded import guarded; a = guarded((3,), (1,), torch.float32); ctypes.string_at(a.data_ptr() + {}, 1)"


@pytest.mark.parametrize(("place", "ends_well"), [(11, True), (12, False)])
def test_the_guard_guards(place, ends_well):
    # A process that touches it ends there.
    here = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", READ.format(place)], cwd=here, capture_output=True, check=False)
    assert run.returncode == 0 if ends_well else run.returncode < 0, run.stderr
