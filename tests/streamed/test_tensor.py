"""A weight without memory among what torch does to weights: products and gradients of any order, copies, files, refusals."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import pollard
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.streamed import source
from pollard.streamed.source import blocks
from pollard.streamed.tensor import StreamedTensor, inner, kept_values
from strategies import seeds


@pytest.fixture(autouse=True, params=[1 << 21, 1])
def room(request, monkeypatch):
    """Weights that fit a block, and such that take many."""
    monkeypatch.setattr(source, "ROOM", request.param)


def pair(make):
    """A module whose weights have no memory, and its ordinary twin."""
    with pollard.never_dense(0):
        model = make()
    return model, pollard.densify_(copy.deepcopy(model))


def whole(tensor):
    return tensor.to_dense() if isinstance(tensor, StreamedTensor) else tensor


def close(found, expected):
    expected = expected.detach()
    scale = float(expected.abs().max()) or 1.0
    assert float((whole(found).detach() - expected).abs().max()) <= 2e-6 * scale * max(1, expected.dim())


LAYERS = {
    "linear": (lambda: nn.Linear(7, 70), (5, 7)),
    "linear of three axes": (lambda: nn.Linear(7, 70), (2, 5, 7)),
    "linear of one sample": (lambda: nn.Linear(7, 70), (7,)),
    "without bias": (lambda: nn.Linear(7, 70, bias=False), (5, 7)),
    "conv1d": (lambda: nn.Conv1d(3, 70, 3, stride=2), (4, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 70, (3, 2), padding=(1, 0), dilation=(1, 2)), (4, 3, 6, 6)),
    "conv2d of one sample": (lambda: nn.Conv2d(3, 70, 3), (3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 40, 2), (2, 2, 4, 4, 4)),
    "reflected": (lambda: nn.Conv2d(3, 40, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_products_and_first_and_second_derivatives_are_those_of_the_dense_twin(kind):
    make, shape = LAYERS[kind]
    x, found = torch.randn(shape, generator=torch.Generator().manual_seed(0)), []
    for layer in pair(make):
        given = x.clone().requires_grad_()
        y = layer(given)
        weights = [given, *layer.parameters()]
        slopes = torch.autograd.grad(torch.tanh(y).square().sum(), weights, create_graph=True)
        along = torch.stack([inner(each.detach() * 0.5, each) for each in slopes]).sum()
        found.append([y, *slopes, *torch.autograd.grad(along, weights)])
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)


def test_a_weight_used_twice_has_the_sum_of_both_gradients():
    streamed, dense = pair(lambda: nn.Linear(6, 6))
    x = torch.randn(3, 6)
    for layer in (streamed, dense):
        layer.weight.grad = torch.autograd.grad(layer(layer(x)).square().sum(), layer.weight)[0]
    close(streamed.weight.grad, dense.weight.grad)


@given(rows=st.integers(1, 80), columns=st.integers(1, 9), seed=seeds, data=st.data())
def test_what_is_done_place_by_place_is_done_when_rows_are_asked_for(rows, columns, seed, data):
    with pollard.never_dense(seed):
        one, other = nn.Linear(columns, rows).weight, nn.Linear(columns, rows).weight
    done = [
        lambda a, b: a + b, lambda a, b: a - 2 * b, lambda a, b: (a * b).abs(), lambda a, b: a.lerp(b, 0.25), lambda a, b: -a / 3,
        lambda a, b: a.double().square(),
    ]  # fmt: skip
    act = data.draw(st.sampled_from(done))
    made, expected = act(one.detach(), other.detach()), act(one.to_dense(), other.to_dense())
    first = data.draw(st.integers(0, rows - 1))
    assert torch.equal(made.to_dense(), expected)
    assert made.dtype == expected.dtype
    assert torch.equal(made.block(first, rows), expected[first:])
    assert torch.equal(made.amax(), expected.amax())
    assert torch.allclose(made.sum(1), expected.sum(1))


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b2x2", "2:4"])
def test_kept_values_are_those_of_the_dense_weight(pattern):
    with pollard.never_dense(3):
        weights = [nn.Linear(12, 64).weight, nn.Conv2d(3, 64, 2).weight.view(64, -1)]
    weights += [weights[0] * 2, weights[0].split(32)[1]]
    for weight in weights:
        density = 0.5 if pattern == "2:4" else 0.3
        topology = Topology.random(tuple(weight.shape), density, pattern, torch.Generator().manual_seed(0))
        assert torch.equal(kept_values(weight.detach(), topology), kept_values(weight.to_dense().detach(), topology))


def test_copies_pickles_states_and_conversions_keep_the_numbers():
    model, dense = pair(lambda: nn.Sequential(nn.Linear(5, 40)))
    same = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).share_memory()]
    for each in same:
        assert isinstance(each[0].weight, nn.Parameter)
        assert torch.equal(each[0].weight.to_dense(), dense[0].weight)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(copy.deepcopy(model).to(dtype)[0].weight.to_dense(), dense[0].weight.to(dtype))
        half = copy.deepcopy(model).to(dtype)
        assert torch.equal(half.float()[0].weight.to_dense(), dense[0].weight.to(dtype).float())
    with pollard.never_dense(9):
        other = nn.Sequential(nn.Linear(5, 40))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[0].weight.to_dense(), dense[0].weight)


def test_a_copy_can_be_drawn_anew_and_leaves_the_other_alone():
    model, dense = pair(lambda: nn.Linear(5, 40))
    other = copy.deepcopy(model)
    nn.init.normal_(other.weight)
    assert torch.equal(model.weight.to_dense(), dense.weight)
    assert not torch.equal(other.weight.to_dense(), dense.weight)


def test_data_can_be_exchanged_for_other_streamed_numbers_and_nothing_else():
    with pollard.never_dense(0):
        one, other = nn.Linear(5, 40), nn.Linear(5, 40)
    expected = other.weight.to_dense()
    one.weight.data = other.weight.data
    assert torch.equal(one.weight.to_dense(), expected)
    with pytest.raises(InvalidInput, match="densify_"):
        one.weight.data = torch.zeros(40, 5)
    assert torch.equal(one.weight.to_dense(), expected)


REFUSED = {
    "transposed": lambda layer, x: x.t() @ layer.weight.t(),
    "given to an optimizer": lambda layer, x: (layer(x).sum().backward(), torch.optim.SGD(layer.parameters(), 0.1).step()),
    "memory": lambda layer, x: layer.weight.data_ptr(),
    "numpy": lambda layer, x: layer.weight.detach().numpy(),
    "a row": lambda layer, x: layer.weight[0],
    "as an input": lambda layer, x: functional.linear(layer.weight, layer.weight),
    "a convolution of groups": lambda layer, x: functional.conv1d(x.view(1, 6, 5), layer.weight.view(40, 5, 1), groups=2),
    "ordinary numbers": lambda layer, x: layer.weight.data.copy_(torch.zeros(40, 5)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_all_else_is_refused_with_a_way_out(what):
    with pollard.never_dense(0):
        layer = nn.Linear(5, 40)
    with pytest.raises(InvalidInput, match=r"pollard"):
        REFUSED[what](layer, torch.randn(6, 5))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_layer_computes_the_same():
    streamed, dense = pair(lambda: nn.Linear(5, 40))
    x = torch.randn(3, 5)
    with torch.no_grad():
        assert torch.allclose(torch.compile(streamed)(x), dense(x), atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), list(product([0, 1, 31, 32, 33, 100], [1, 7, 1 << 22])))
def test_blocks_cover_all_rows_once_and_cut_no_grain(rows, columns):
    found = list(blocks((rows, columns)))
    assert [first for first, _ in found] == [0, *(last for _, last in found)][: len(found)]
    assert (found[-1][1] if found else 0) == rows
    assert all(first % 16 == 0 for first, _ in found)
