"""Every way that torch itself has to compute a dense layer on this machine: nobody shall call the baseline weak.

`nn.Linear` is what a user gets, and it need not be the fastest: it multiplies with the BLAS that torch was built with, where
oneDNN, in the same torch, may be faster. So a case is timed against all of them, and the fastest is its baseline.

A way is a value: given the operands it prepares what could be prepared once, a transposed or packed weight, for free, and
gives the call that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pollard.report.case import PRODUCTS, RESULTS, Case, Contender, Operands, Reference
from pollard.report.timing import seconds_once

Call = Callable[[], Tensor]
Way = Callable[[Operands], Call]

NN_LINEAR, PACKED = "nn.Linear", "oneDNN packed"
PARTS_ALONE = "products alone"
# Where a CPU has no half precision, torch may run a plain loop: many times slower than a product in blocks.
LOOP = 4.0
TRIAL = (512, 512, 32)
SLOWER = 1.3  # times the fastest: such a way is not the fastest one, and is not timed in turns


# A weight, a bias or None, and the rows of the batches to come, to the product with such a batch.
Product = Callable[[Tensor], Tensor]
Prepare = Callable[[Tensor, Tensor | None, int], Product]


# torch has no public names for these operators of oneDNN and MKL, which torch.compile puts in.
def _onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # noqa: SLF001
    return out


def _packed(right: Tensor, batch: int) -> Tensor:
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(right, batch)  # noqa: SLF001
    return out


def _onednn_packed(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    packed = _packed(weight, rows)
    return lambda x: _onednn(x, packed, bias)


def _mkldnn_linear(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch._C._nn.mkldnn_linear(left.to_mkldnn(), right, bias).to_dense()  # noqa: SLF001
    return out


def _mkl_packed(weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)  # noqa: SLF001
    return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight, bias, rows)  # noqa: SLF001


def _mm(weight: Tensor, bias: Tensor | None, _: int) -> Product:
    turned = weight.T.contiguous()
    return (lambda x: torch.mm(x, turned)) if bias is None else (lambda x: torch.addmm(bias, x, turned))


# Ways to a linear layer whose weight stays as it is.
PREPARED: dict[str, Prepare] = {
    "linear": lambda weight, bias, _: lambda x: linear(x, weight, bias),
    "mm": _mm,
    "oneDNN": lambda weight, bias, _: lambda x: _onednn(x, weight, bias),
    PACKED: _onednn_packed,
    "mkldnn_linear": lambda weight, bias, _: lambda x: _mkldnn_linear(x, weight, bias),
    "MKL packed": _mkl_packed,
}


def _on_batch(prepare: Prepare, left: Tensor, right: Tensor) -> Call:
    return partial(prepare(right.contiguous(), None, len(left)), left)


def _features_first(left: Tensor, right: Tensor) -> Call:
    first, right = left.T.contiguous(), right.contiguous()
    return lambda: torch.mm(right, first).T


# Ways to `left @ right.T` where `right` is a weight.
WITH_WEIGHT: dict[str, Callable[[Tensor, Tensor], Call]] = {
    **{name: partial(_on_batch, prepare) for name, prepare in PREPARED.items()},
    "features first": _features_first,
}


def _with_weight(sides: Callable[[Operands], tuple[Tensor, Tensor]], own: str) -> dict[str, Way]:
    """Those of WITH_WEIGHT on two `sides` of the operands, of which `own` is what nn.Linear does."""

    def way(make: Callable[[Tensor, Tensor], Call]) -> Way:
        return lambda operands: make(*sides(operands))

    return {NN_LINEAR if name == own else name: way(make) for name, make in WITH_WEIGHT.items()}


def _on_features(operands: Operands) -> Call:
    grad, x = operands.grad.T.contiguous(), operands.x.T.contiguous()
    return lambda: torch.mm(grad, x.T)


# Product -> name -> way.
WAYS: dict[str, dict[str, Way]] = {
    "forward": _with_weight(lambda o: (o.x, o.weight), own="linear"),
    "input_grad": _with_weight(lambda o: (o.grad, o.weight.T), own="mm"),
    # Both sides are new in each step: what is packed is packed within the call.
    "value_grad": {
        NN_LINEAR: lambda o: lambda: torch.mm(o.grad.T, o.x),
        "features first": _on_features,
        "oneDNN": lambda o: lambda: _onednn(o.grad.T, o.x.T),
        PACKED: lambda o: lambda: _onednn(o.grad.T, _packed(o.x.T, o.grad.shape[1])),
    },
}


class MkldnnLinear(nn.Linear):
    """A linear layer that oneDNN computes, forward and backward, with torch's own derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        """The product, for x of shape `(N, in_features)`."""
        return _mkldnn_linear(x, self.weight, self.bias)


class PreparedLinear(nn.Linear):
    """A linear layer for inference, computed in a `way` of PREPARED; its weight is prepared once for each number of rows.

    The tensors are those of the layer it is made of.
    """

    def __init__(self, layer: nn.Linear, way: str) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias, self.way = layer.weight, layer.bias, way
        self._products: dict[int, Product] = {}
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """The product, for x of shape `(..., in_features)`."""
        flat = x.reshape(-1, self.in_features)
        product = self._products.get(len(flat))
        if product is None:
            product = self._products[len(flat)] = PREPARED[self.way](self.weight.contiguous(), self.bias, len(flat))
        return product(flat).reshape(*x.shape[:-1], self.out_features)


# Name -> layer, of what is trained as a whole.
LAYERS: dict[str, type[nn.Linear]] = {NN_LINEAR: nn.Linear, "mkldnn_linear": MkldnnLinear}


@dataclass(frozen=True)
class DenseWays:
    """Contenders of one precision by the name of their way: such that do the whole case, and such that do one product of it."""

    whole: dict[str, Contender]
    parts: tuple[dict[str, Contender], ...] = ()

    def __iter__(self) -> Iterator[dict[str, Contender]]:
        yield from (self.whole, *self.parts)

    def best(self, ms: Mapping[str, float]) -> tuple[float, str]:
        """The fewest of the milliseconds `ms`, in which ways may be lacking but not all, and the way.

        The best of each product, added up, are less than any whole could take: no step can do without them.
        """
        timed = [{way: ms[one.name] for way, one in ways.items() if one.name in ms} for ways in self]
        whole, *parts = timed
        figures = [(time, way) for way, time in whole.items()]
        if parts and all(parts):
            figures.append((sum(min(part.values()) for part in parts), PARTS_ALONE))
        return min(figures)


def ways_to(
    op: str, operands: Operands, reference: Reference, *, prefix: str = "", always: tuple[str, ...] = ()
) -> dict[str, Contender]:
    """The usable ways to one product of `operands`, and those that take part `always`; `prefix` tells their names from others'."""

    def comparable(result: Tensor) -> dict[str, Tensor]:
        return {RESULTS[op]: operands.kept(result) if op == "value_grad" else result}

    usable = usable_ways(op, operands.x.dtype)
    return {
        way: Contender(prefix + way, make(operands), comparable, reference)
        for way, make in WAYS[op].items()
        if way in (*usable, *always)
    }


@cache
def usable_ways(op: str, dtype: torch.dtype) -> tuple[str, ...]:
    """The names of the ways to a product that this torch has on this CPU, and that are more than a plain loop."""
    case = Case(op, "unstructured", TRIAL, 1.0)
    operands = Operands.draw(case, torch.Generator().manual_seed(0)).to(dtype)
    seconds = {}
    for way, make in WAYS[op].items():
        # Without oneDNN an operator is missing; without the instructions it wants, it says so.
        try:
            seconds[way] = seconds_once(make(operands))
        except (RuntimeError, AttributeError):
            continue
    return tuple(way for way, time in seconds.items() if time < LOOP * min(seconds.values()))


@cache
def layers_of(dtype: torch.dtype) -> dict[str, type[nn.Linear]]:
    """The layers of `dtype` that this torch trains on this CPU; `nn.Linear` it has always."""
    return {
        name: kind
        for name, kind in LAYERS.items()
        if name == NN_LINEAR or (name in usable_ways("forward", dtype) and _trains(kind, dtype))
    }


def _trains(kind: type[nn.Linear], dtype: torch.dtype) -> bool:
    out_features, in_features, batch = TRIAL
    layer, x = kind(in_features, out_features).to(dtype), torch.ones(batch, in_features, dtype=dtype, device="cpu")
    try:  # a product that there is may want its derivative in a form that it was not given
        layer(x.requires_grad_()).sum().backward()
    except RuntimeError:
        return False
    return True


def inference_ways(dtype: torch.dtype) -> tuple[str, ...]:
    """The names in PREPARED that this torch has for `dtype` on this CPU, `nn.Linear` itself left out."""
    return tuple(way for way in usable_ways("forward", dtype) if way in PREPARED)


def has_products(dtype: torch.dtype) -> bool:
    """Whether the three products of `nn.Linear` in `dtype` are more than plain loops here."""
    return all(NN_LINEAR in usable_ways(op, dtype) for op in PRODUCTS)
