"""Convolutions by panels of the weight are torch's own with the weight in dense form: on any device, here on the CPU."""

from __future__ import annotations

from itertools import product
from math import lcm

import pytest
import torch
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.kernels.convolutions import panels
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products.placed import positions_on

CHANNELS, OUT = 4, 8
PLAIN = [functional.conv1d, functional.conv2d, functional.conv3d]
TRANSPOSED = [functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d]


def case(axes, *, transposed=False, pattern="unstructured", samples=3, dtype=torch.float64, density=0.5):
    """A window, a topology, images, values and a bias; zeros before an axis are not as many as after it, unless it is transposed."""
    zeros = ((1, 1), (0, 0), (1, 1)) if transposed else ((1, 1), (0, 1), (2, 1))
    added = (1, 0, 1)[:axes] if transposed else None
    window = Window((3, 2, 2)[:axes], (2, 1, 2)[:axes], (1, 2, 1)[:axes], zeros[:axes], added)
    generator = torch.Generator().manual_seed(0)
    topology = Topology.random((OUT * window.row_taps, CHANNELS * window.column_taps), density, pattern, generator)
    x = torch.randn(samples, CHANNELS, *(6, 7, 5)[:axes], dtype=dtype, generator=generator)
    values, bias = (torch.randn(size, dtype=dtype, generator=generator) for size in (topology.nnz, OUT))
    return window, topology, x, values, bias


def dense(window, topology, x, values, bias):
    """The same by the whole weight, differentiable."""
    spread = values.new_zeros(topology.shape[0] * topology.shape[1]).scatter(0, topology.weight_positions(), values)
    axes = len(window.kernel)
    if window.added is None:
        around = [side for pair in reversed(window.padding) for side in pair]
        weight = spread.view(OUT, CHANNELS, *window.kernel)
        return PLAIN[axes - 1](functional.pad(x, around), weight, bias, window.stride, 0, window.dilation)
    weight = spread.view(OUT, -1, CHANNELS).permute(2, 0, 1).reshape(CHANNELS, OUT, *window.kernel)
    before = [each for each, _ in window.padding]
    return TRANSPOSED[axes - 1](x, weight, bias, window.stride, before, window.added, 1, window.dilation)


@pytest.mark.parametrize("room", [panels.BYTES, 600], ids=["one", "several"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b4x2", "2:4"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_products_are_torchs_own(monkeypatch, axes, transposed, pattern, room):
    monkeypatch.setattr(panels, "BYTES", room)
    window, topology, x, values, bias = case(axes, transposed=transposed, pattern=pattern)
    x.requires_grad_()
    values.requires_grad_()
    expected = dense(window, topology, x, values, bias)
    upstream = torch.randn(expected.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    slopes = torch.autograd.grad(expected, (x, values), upstream)
    with torch.no_grad():
        y = panels.forward(x, values, topology, bias, window)
        dx = panels.input_grad(upstream, values, topology, window, x.shape[2:])
        found = panels.value_grad(upstream, x, topology, window)
    assert y.shape[2:] == window.extents(x.shape[2:])
    assert y.is_contiguous()
    assert dx.is_contiguous()
    torch.testing.assert_close((y, dx, found), (expected.detach(), *slopes))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_panel_is_whole_rows_of_grains_and_no_larger_than_is_said(monkeypatch, axes, transposed):
    for pattern, room in product(("unstructured", "v4"), (1, 600, 1 << 20)):
        monkeypatch.setattr(panels, "BYTES", room)
        window, topology, *_ = case(axes, transposed=transposed, pattern=pattern)
        cuts = list(panels._cut(topology, window, torch.float32))
        assert [rows.start for rows, _ in cuts] == [0, *(rows.stop for rows, _ in cuts[:-1])]
        assert cuts[-1][0].stop == topology.shape[0]
        assert [outs.stop * window.row_taps for _, outs in cuts] == [rows.stop for rows, _ in cuts]
        least = lcm(topology.pattern.rows, window.row_taps)
        for rows, _ in cuts:
            assert rows.stop % topology.pattern.rows == 0
            assert rows.stop - rows.start <= least or (rows.stop - rows.start) * topology.shape[1] * 4 <= room


@pytest.mark.parametrize("room", [panels.BYTES, 200])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_an_activation_comes_last(monkeypatch, activation, room):
    monkeypatch.setattr(panels, "BYTES", room)
    window, topology, x, values, bias = case(2)
    expected = dense(window, topology, x, values, bias)
    own = {"gelu_tanh": lambda y: functional.gelu(y, approximate="tanh")}.get(
        activation, getattr(functional, activation, None)
    )
    found = panels.forward(x, values, topology, bias, window, activation=activation)
    torch.testing.assert_close(found, own(expected))


@pytest.mark.parametrize("room", [panels.BYTES, 200])
@pytest.mark.parametrize("of_values", [torch.float32, torch.bfloat16])
def test_less_precision_of_images_takes_values_of_either(monkeypatch, of_values, room):
    monkeypatch.setattr(panels, "BYTES", room)
    window, topology, x, values, bias = case(2, dtype=torch.float32)
    rounded = [each.bfloat16().double() for each in (x, values, bias)]
    x, values, bias = x.bfloat16(), values.to(of_values), bias.to(of_values)
    exact = dense(window, topology, *(each.requires_grad_() for each in rounded))
    y = panels.forward(x, values, topology, bias, window)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.double(), exact.detach(), rtol=2**-7, atol=2e-2)
    upstream = torch.ones_like(y)
    slopes = torch.autograd.grad(exact, rounded[:2], upstream.double())
    dx = panels.input_grad(upstream, values, topology, window, x.shape[2:])
    found = panels.value_grad(upstream, x, topology, window, of_values)
    assert (dx.dtype, found.dtype) == (torch.bfloat16, of_values)
    torch.testing.assert_close((dx.double(), found.double()), slopes, rtol=2**-7, atol=3e-2)


def test_panels_are_added_up_in_single_precision(monkeypatch):
    # The last of them is lost beside the first in half precision, and the first is then taken away.
    window, topology = Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))), Topology.full((3, 1))
    grad, values = (
        torch.ones(1, 3, 1, 1, dtype=torch.bfloat16),
        torch.tensor([256.0, 1.0, -256.0], dtype=torch.bfloat16),
    )
    monkeypatch.setattr(panels, "BYTES", 1)
    assert panels.input_grad(grad, values, topology, window, (1, 1)).item() == 1.0


def test_nothing_is_kept_or_there_are_no_images():
    window, topology, x, values, bias = case(2)
    assert panels.forward(x[:0], values, topology, bias, window).shape == (0, OUT, *window.extents((6, 7)))
    empty = Topology.from_positions(topology.shape, "unstructured", torch.empty(0, dtype=torch.int64))
    y = panels.forward(x, values[:0], empty, bias, window)
    torch.testing.assert_close(y, bias.view(-1, 1, 1).expand_as(y))
    assert panels.value_grad(y, x, empty, window).shape == (0,)
    assert not panels.input_grad(y, values[:0], empty, window, (6, 7)).any()
    assert not panels.forward(x, values[:0], empty, None, window).any()


def test_what_does_not_fit_is_refused():
    window, topology, x, values, bias = case(2)
    with pytest.raises(InvalidInput, match="values of shape"):
        panels.forward(x, values[:-1], topology, bias, window)
    with pytest.raises(InvalidInput, match=r"values of torch\.float32 beside torch\.float64"):
        panels.forward(x, values.float(), topology, bias, window)
    with pytest.raises(InvalidInput, match="bias of shape"):
        panels.forward(x, values, topology, bias[:-1], window)
    with pytest.raises(InvalidInput, match="the same batch"):
        panels.value_grad(torch.zeros(1, OUT, *window.extents((6, 7)), dtype=x.dtype), x, topology, window)


def test_positions_take_four_bytes_where_they_fit():
    _, topology, *_ = case(2)
    positions = positions_on(topology, torch.device("cpu"))
    assert positions.dtype is torch.int32
    assert torch.equal(positions.long(), topology.weight_positions())
    large = Topology.from_positions((1 << 16, 1 << 16), "unstructured", torch.tensor([(1 << 32) - 1]))
    assert positions_on(large, torch.device("cpu")).tolist() == [(1 << 32) - 1]
