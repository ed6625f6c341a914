"""Every way that dense torch has computes the same product, and the fastest of them is the baseline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pollard.report import dense_ways
from pollard.report.bench import verified
from pollard.report.case import DTYPES, PRODUCTS, RESULTS, Case, Contender, Operands, Reference
from pollard.report.contenders import contest
from pollard.report.dense_ways import LAYERS, NN_LINEAR, PARTS_ALONE, WAYS, DenseWays, layers_of, usable_ways, ways_to

CASE = Case("forward", "v4", (32, 24, 8), 0.25)


def operands(dtype: str = "float32") -> Operands:
    return Operands.draw(CASE, torch.Generator().manual_seed(0)).to(DTYPES[dtype])


def contender(name: str) -> Contender:
    return Contender(name, lambda: None, lambda _: {}, Reference({}, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "way"), [(op, way) for op, ways in WAYS.items() for way in ways])
def test_every_way_is_the_product(op, way, dtype):
    numbers = operands(dtype)
    reference = Reference.of(numbers)
    try:
        result = WAYS[op][way](numbers)()
    except (RuntimeError, AttributeError) as missing:
        assert way != NN_LINEAR
        pytest.skip(f"this torch, on this CPU: {str(missing).splitlines()[0]}")
    kept = numbers.kept(result) if op == "value_grad" else result
    reference.hold(way, {RESULTS[op]: kept})


@pytest.mark.parametrize("op", PRODUCTS)
def test_nn_linear_is_one_of_them_and_does_what_nn_linear_does(op):
    numbers = operands()
    layer = nn.Linear(24, 32, bias=False)
    layer.weight = nn.Parameter(numbers.weight.clone())
    x = numbers.x.clone().requires_grad_()
    out = layer(x)
    out.backward(numbers.grad)
    want = {"forward": out.detach(), "input_grad": x.grad, "value_grad": layer.weight.grad}
    torch.testing.assert_close(WAYS[op][NN_LINEAR](numbers)(), want[op])


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_layers_that_are_offered_train_in_their_precision(dtype):
    offered = layers_of(dtype)
    assert NN_LINEAR in offered
    for kind in offered.values():
        layer, x = kind(24, 32).to(dtype), torch.randn(8, 24, dtype=dtype)
        layer(x.requires_grad_()).sum().backward()


def test_a_layer_without_a_derivative_here_is_not_offered(monkeypatch):
    class Refuses(nn.Linear):
        def forward(self, x):
            raise RuntimeError("mkldnn_linear_backward: weight_t needs to be a dense tensor")

    monkeypatch.setitem(LAYERS, "mkldnn_linear", Refuses)
    layers_of.cache_clear()
    try:
        assert list(layers_of(torch.float32)) == [NN_LINEAR]
    finally:
        layers_of.cache_clear()


def test_every_layer_trains_as_nn_linear_does():
    numbers = operands()
    gradients = []
    for kind in LAYERS.values():
        layer = kind(24, 32)
        layer.load_state_dict({"weight": numbers.weight, "bias": torch.arange(32.0)})
        x = numbers.x.clone().requires_grad_()
        layer(x).backward(numbers.grad)
        gradients.append((x.grad, layer.weight.grad, layer.bias.grad))
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0])


def test_a_way_that_torch_lacks_here_does_not_take_part(monkeypatch):
    def refused(_: Operands):
        raise RuntimeError("needs the cpu support")

    monkeypatch.setitem(WAYS["forward"], "oneDNN packed", refused)
    usable_ways.cache_clear()
    try:
        numbers = operands()
        assert "oneDNN packed" not in ways_to("forward", numbers, Reference.of(numbers))
        assert contest(CASE).dense.whole[NN_LINEAR]
    finally:
        usable_ways.cache_clear()


@pytest.mark.parametrize("op", ["forward", "forward+backward", "step"])
def test_what_is_a_loop_here_is_no_baseline_in_bfloat16_but_is_in_its_own_precision(op, monkeypatch):
    monkeypatch.setattr(dense_ways, "usable_ways", lambda *_: ())
    other = contest(Case(op, "v4", (32, 24, 8), 0.25), peers=False)
    assert list(other.bfloat16.whole) == []
    own = contest(Case(op, "v4", (32, 24, 8), 0.25, dtype="bfloat16"), peers=False)
    assert list(own.dense.whole) == [NN_LINEAR]
    assert own.bfloat16 is own.dense


def test_the_best_is_the_fastest_that_was_timed():
    ways = DenseWays({way: contender(way) for way in (NN_LINEAR, "mm", "oneDNN")})
    assert ways.best({NN_LINEAR: 3.0, "mm": 2.0}) == (2.0, "mm")
    assert ways.best({NN_LINEAR: 3.0, "mm": 4.0}) == (3.0, NN_LINEAR)


def test_the_best_products_bound_what_a_whole_can_take():
    parts = tuple({way: contender(f"{op} by {way}") for way in ("a", "b")} for op in PRODUCTS)
    ways = DenseWays({NN_LINEAR: contender(NN_LINEAR)}, parts)
    times = {"forward by a": 1.0, "forward by b": 2.0, "input_grad by b": 1.0, "value_grad by a": 1.5}
    assert ways.best({NN_LINEAR: 5.0, **times}) == (3.5, PARTS_ALONE)
    assert ways.best({NN_LINEAR: 3.0, **times}) == (3.0, NN_LINEAR)
    # A product that nobody timed leaves no sum.
    assert ways.best({NN_LINEAR: 5.0, "forward by a": 1.0}) == (5.0, NN_LINEAR)


@pytest.mark.parametrize("op", ["forward", "forward+backward", "step"])
def test_nn_linear_and_at_least_one_way_of_each_product_are_timed(op):
    prepared = contest(Case(op, "v4", (32, 24, 8), 0.25))
    names = [one.name for one in verified(prepared)]
    assert len(names) == len(set(names))
    assert {"pollard", NN_LINEAR} <= set(names)
    assert all(any(one.name in names for one in ways.values()) for ways in prepared.dense)
