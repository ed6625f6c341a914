"""Modules that are made of several matrices compute on a device what they do on the CPU: convolutions, recurrent ones, attention."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pollard
from pollard.composites.convolution import ComposedConv, ComposedConvTranspose
from pollard.ops import convolution_operators
from tried import DEVICE, ON_CUDA, batch, close, only_cuda, plan_of, require_same, untuned

pytestmark = untuned


def convolution():
    return nn.Conv2d(4, 8, 3, stride=2, padding=1), batch(6, 4, 9, 9)


def reflected():
    return nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular", dilation=2), batch(3, 4, 9, 9)


def convolution_1d():
    return nn.Conv1d(4, 8, 3, padding="same"), batch(6, 4, 9)


def convolution_3d():
    return nn.Conv3d(4, 8, 3), batch(2, 4, 5, 5, 5)


def transposed():
    return nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1), batch(3, 4, 5, 5)


def long_memory():
    return nn.LSTM(16, 32, num_layers=2, bidirectional=True, batch_first=True), batch(3, 5, 16)


def gated():
    return nn.GRU(16, 32), batch(5, 3, 16)


def attention():
    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    return Itself(), batch(3, 5, 32)


def encoder():
    return nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), batch(3, 5, 32)


def bilinear():
    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.product = nn.Bilinear(8, 8, 4)

        def forward(self, x):
            return self.product(x, x)

    return Itself(), batch(3, 8)


CONVOLUTIONS = [convolution, reflected, convolution_1d, convolution_3d, transposed]
WHOLES = [*CONVOLUTIONS, long_memory, gated, attention, encoder, bilinear]


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("whole", WHOLES, ids=lambda made: made.__name__)
def test_what_is_made_of_matrices(whole, storage):
    torch.manual_seed(0)
    module, x = whole()
    here = nn.Sequential(module)
    plan = plan_of(here)
    there = copy.deepcopy(here).to(DEVICE)
    pollard.sparsify_(here, plan, storage=storage)
    pollard.sparsify_(there, plan, storage=storage)
    require_same(here, there, x)
    for model in (here, there):
        model.eval()
    with torch.no_grad():
        found, expected = there(x.to(DEVICE)), here(x)
        close(*((found[0], expected[0]) if isinstance(found, tuple) else (found, expected)))
    for model in (here, there):
        pollard.densify_(model)
    for found, expected in zip(there.state_dict().values(), here.state_dict().values(), strict=True):
        close(found, expected)
    if ON_CUDA:  # which has recurrent modules of its own
        with torch.no_grad():
            found, expected = there(x.to(DEVICE)), here(x)
        close(*((found[0], expected[0]) if isinstance(found, tuple) else (found, expected)))


@pytest.mark.parametrize("whole", CONVOLUTIONS, ids=lambda made: made.__name__)
def test_images_are_not_unfolded_there(monkeypatch, whole):
    def unfold(*_):
        raise AssertionError("images are unfolded")

    model, x = nn.Sequential(whole()[0]), whole()[1].to(DEVICE)
    pollard.sparsify_(model, plan_of(model))
    model.to(DEVICE)
    monkeypatch.setattr(ComposedConv, "_unfolded", unfold)
    monkeypatch.setattr(ComposedConvTranspose, "_spread", unfold)
    monkeypatch.setattr(convolution_operators, "_parts", unfold)
    model(x.requires_grad_()).square().sum().backward()
    assert x.grad.device == DEVICE


@pytest.mark.parametrize("whole", CONVOLUTIONS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("pattern", ["v4", "2:4"])
def test_a_convolution_with_a_pattern(pattern, whole):
    module, x = whole()
    here = nn.Sequential(module)
    plan = plan_of(here, pattern=pattern)
    there = pollard.sparsify_(copy.deepcopy(here).to(DEVICE), plan)
    require_same(pollard.sparsify_(here, plan), there, x)


@pytest.mark.parametrize("whole", [long_memory, attention], ids=lambda made: made.__name__)
def test_what_stays_of_a_module_is_no_part_of_memory_that_went(whole):
    # Recurrent modules lay all their parameters out in one piece, and attention stacks three of its matrices.
    module, x = whole()
    model = nn.Sequential(module).to(DEVICE)
    part = next(name for name in plan_of(model) if "ih" in name or "q_proj" in name)
    for layers in (None, part):
        kept = copy.deepcopy(model)
        pollard.sparsify_(kept, plan_of(kept), layers=layers)
        held = sum(
            {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in kept.parameters()}.values()
        )
        assert held <= sum(each.nbytes for each in kept.parameters()) + 1024
        kept(x.to(DEVICE))


# -- precision


@only_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("whole", [convolution, transposed, long_memory, attention], ids=lambda made: made.__name__)
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_autocast(dtype, whole, storage):
    module, x = whole()
    model = nn.Sequential(module).to(DEVICE)
    dense = copy.deepcopy(model)
    plan = plan_of(model)
    pollard.sparsify_(model, plan, storage=storage)
    pollard.densify_(pollard.sparsify_(dense, plan))
    found = []
    for each in (model, dense):
        lead = x.to(DEVICE).requires_grad_()
        with torch.autocast("cuda", dtype):
            y = each(lead)
            y = y[0] if isinstance(y, tuple) else y
            loss = y.float().square().mean()
        loss.backward()
        found.append((y, lead.grad))
        assert all(parameter.grad.dtype is torch.float32 for parameter in each.parameters())
    (y, grad), (expected, slope) = found
    assert y.dtype is dtype  # torch's own recurrent layers compute in float16 under autocast to bfloat16
    torch.testing.assert_close(y.float(), expected.float(), rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(grad, slope, rtol=5e-2, atol=1e-2 * float(slope.abs().max()) + 1e-6)
