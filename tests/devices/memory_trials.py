"""Memory on CUDA, which can be counted: what is sparse takes none of a dense weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from pollard.kernels.convolutions import panels
from pollard.nn import SparseLinear
from tried import DEVICE, only_cuda, seeded, untuned

pytestmark = [untuned, only_cuda]


def peak(call):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, held


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["rigl", "set", "gse"])
def test_no_weight_is_ever_dense(method, dtype):
    wide, dense = 8192, 8192 * 8192 * dtype.itemsize
    x = torch.randn(64, wide, device=DEVICE, dtype=dtype)
    x @ torch.randn(wide, 8, device=DEVICE, dtype=dtype)  # what libraries keep for themselves

    def training():
        layer = SparseLinear.random(wide, wide, 0.01, device=DEVICE, dtype=dtype)
        model = nn.Sequential(layer)
        sparse = pollard.sparse_training(model, torch.optim.Adam(model.parameters()), method, steps=8, every=2)
        for _ in range(5):
            sparse.zero_grad()
            model(x).float().square().mean().backward()
            sparse.step()
        assert sparse.updates == 2
        return sparse

    most, _ = peak(training)
    assert most < dense / 3


def step_of_images(model, x):
    """The most that a step takes, in bytes, once all is there that stays."""
    for _ in range(2):
        x.grad = None
        model.zero_grad()
        most, _ = peak(lambda: model(x).square().mean().backward())
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolutions_take_hardly_more_memory_than_torchs_own(dtype):
    model = nn.Sequential(nn.Conv2d(64, 64, 5, padding=2)).to(DEVICE, dtype)
    x = torch.randn(128, 64, 32, 32, device=DEVICE, dtype=dtype, requires_grad=True)
    dense = step_of_images(model, x)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.1))
    assert step_of_images(model, x) < dense + (1 << 21)


def test_no_convolution_is_ever_dense():
    model = nn.Sequential(nn.Conv2d(2048, 2048, 3, padding=1)).to(DEVICE)
    dense = model[0].weight.nbytes
    pollard.sparsify_(model, pollard.prune(model, "random", 0.02, generator=seeded()))
    x = torch.randn(4, 2048, 8, 8, device=DEVICE, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(model(x), F.conv2d(x, model[0].weight, model[0].bias, padding=1))
    # A panel of the weight or of its gradient while the one before it is still there, images, and what cuDNN works in, as it
    # chooses: 104 MB on an H200. A dense weight alone would be 151.
    assert dense > 8 * panels.BYTES
    assert step_of_images(model, x) < dense


def test_making_it_sparse_takes_no_second_dense_weight():
    model = nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 4096)).to(DEVICE)
    plan = pollard.prune(model, "random", 0.02, generator=seeded())
    dense = model[0].weight.nbytes
    most, _ = peak(lambda: pollard.sparsify_(model, plan))
    assert most < dense / 4
    assert sum(parameter.nbytes for parameter in model.parameters()) < dense / 10
