"""Who competes in a benchmark: Pollard, dense torch in every way it has, and the sparse libraries that happen to be installed.

Every contender of a case computes the same function of the same weights, batch first in and out, as a user would call it;
what a contender spends on packing, transposing or wrapping is its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.formats.pattern import Pattern
from pollard.nn.linear import SparseLinear
from pollard.ops import matmul
from pollard.report.case import DTYPES, OPTIMIZERS, PRODUCTS, RESULTS, Case, Contender, Operands, Reference
from pollard.report.dense_ways import NN_LINEAR, DenseWays, has_products, layers_of, ways_to
from pollard.report.peers import peers as peers_of

POLLARD = "pollard"
BFLOAT16 = "bfloat16 "


@dataclass(frozen=True)
class Contest:
    """The contenders of one case, and the floating-point operations of the kept weights.

    dense: in the case's precision. bfloat16: the same in bfloat16; without ways where torch has only loops for it here.
    """

    pollard: Contender
    dense: DenseWays
    bfloat16: DenseWays
    peers: list[Contender]
    flops: int

    def __iter__(self) -> Iterator[Contender]:
        """Each contender once, Pollard first."""
        dense = chain.from_iterable(ways.values() for ways in (*self.dense, *self.bfloat16))
        yield from {one.name: one for one in (self.pollard, *dense, *self.peers)}.values()


def contest(case: Case, *, peers: bool = True, seed: int = 0) -> Contest:
    """The contenders of `case` on random operands drawn from `seed`; optional libraries take part where `peers`."""
    generator = torch.Generator().manual_seed(seed)
    return _network(case, generator) if case.network else _layer(case, generator, peers=peers)


def _layer(case: Case, generator: torch.Generator, *, peers: bool) -> Contest:
    task = _Layer.of(case, Operands.draw(case, generator))
    dense = task.dense(always=(NN_LINEAR,))
    if case.dtype == "bfloat16":
        bfloat16 = dense
    elif case.op in PRODUCTS or has_products(torch.bfloat16):
        bfloat16 = _Layer.of(case, task.operands.to(torch.bfloat16)).dense(BFLOAT16)
    else:
        bfloat16 = DenseWays({})
    products = 1 if case.op in PRODUCTS else 3
    return Contest(
        task.sparse(),
        dense,
        bfloat16,
        peers_of(task.operands, case.op, task.reference) if peers else [],
        flops=2 * products * task.operands.topology.nnz * case.shape[2],
    )


@dataclass(frozen=True)
class _Layer:
    """An operation on one layer, the numbers it is done on, and what must come of it."""

    case: Case
    operands: Operands
    reference: Reference

    @classmethod
    def of(cls, case: Case, operands: Operands) -> _Layer:
        return cls(case, operands, Reference.of(operands))

    def sparse(self) -> Contender:
        """Pollard's."""
        operands, op = self.operands, self.case.op
        rows, columns = operands.topology.shape
        layer = SparseLinear(columns, rows, operands.topology, operands.bias is not None, dtype=operands.values.dtype)
        layer.values = nn.Parameter(operands.values.clone())
        if operands.bias is not None:
            layer.bias = nn.Parameter(operands.bias.clone())
        if op not in PRODUCTS:
            return self._trained(POLLARD, layer, lambda: _gradient(layer.values))
        x, grad, values, topology = operands.x, operands.grad, operands.values, operands.topology
        calls: dict[str, Callable[[], Tensor]] = {
            "forward": torch.no_grad()(lambda: layer(x)),
            "input_grad": lambda: matmul.input_grad(grad, values, topology),
            "value_grad": lambda: matmul.value_grad(grad, x, topology),
        }
        return Contender(POLLARD, calls[op], lambda result: {RESULTS[op]: result}, self.reference)

    def dense(self, prefix: str = "", *, always: tuple[str, ...] = ()) -> DenseWays:
        """Torch's, each name with `prefix`; those named in `always` take part even where they are loops."""
        operands, op = self.operands, self.case.op
        if op in PRODUCTS:
            return DenseWays(ways_to(op, operands, self.reference, prefix=prefix, always=always))

        def trained(name: str, kind: type[nn.Linear]) -> Contender:
            layer = _linear(kind, operands.weight, operands.bias)
            return self._trained(name, layer, lambda: operands.kept(_gradient(layer.weight)))

        whole = {way: trained(prefix + way, kind) for way, kind in layers_of(operands.x.dtype).items()}
        if op == "step":
            return DenseWays(whole)
        products = (ways_to(one, operands, self.reference, prefix=f"{prefix}{one} by ") for one in PRODUCTS)
        return DenseWays(whole, tuple(products))

    def _trained(self, name: str, module: nn.Module, value_gradient: Callable[[], Tensor]) -> Contender:
        """A module forward and backward, as a hidden layer: the input wants its gradient too; then the optimizer's step."""
        x, grad = self.operands.x.clone().requires_grad_(), self.operands.grad
        stepper = OPTIMIZERS[self.case.optimizer](module.parameters()) if self.case.op == "step" else None

        def call() -> Tensor:
            x.grad = None
            module.zero_grad(set_to_none=True)
            out: Tensor = module(x)
            out.backward(grad)
            if stepper:
                stepper.step()
            return out

        def comparable(out: Tensor) -> dict[str, Tensor]:
            return {"output": out.detach(), "input gradient": _gradient(x), "value gradient": value_gradient()}

        return Contender(name, call, comparable, self.reference)


def _network(case: Case, generator: torch.Generator) -> Contest:
    """Whole steps of a ReLU network on random labels; layers whose rows the pattern does not divide are unstructured."""
    dtype, widths, batch = DTYPES[case.dtype], case.network, case.shape[2]
    layers = [_sparse_layer(case, shape, generator).to(dtype) for shape in pairwise(widths)]
    x = torch.randn(batch, widths[0], generator=generator, dtype=torch.float32, device="cpu").to(dtype)
    labels = torch.randint(widths[-1], (batch,), generator=generator, dtype=torch.int64, device="cpu")
    task = _Network.of(case, x, labels, layers)
    dense = task.dense()
    if case.dtype == "bfloat16":
        bfloat16 = dense
    elif has_products(torch.bfloat16):
        bfloat16 = task.to(torch.bfloat16).dense(BFLOAT16)
    else:
        bfloat16 = DenseWays({})
    # The first layer's input is data: it needs no gradient.
    products = 3 * sum(layer.topology.nnz for layer in layers) - layers[0].topology.nnz
    return Contest(task.sparse(layers), dense, bfloat16, [], flops=2 * products * batch)


def _sparse_layer(case: Case, shape: tuple[int, int], generator: torch.Generator) -> SparseLinear:
    in_features, out_features = shape
    fits = Pattern.parse(case.pattern).fits((out_features, in_features))
    pattern = case.pattern if fits else "unstructured"
    return SparseLinear.random(in_features, out_features, density=case.density, pattern=pattern, generator=generator)


@dataclass(frozen=True)
class _Network:
    """A step of a network: its batch and labels, dense twins of its layers, where their kept weights stand, and what must come of it."""

    case: Case
    x: Tensor
    labels: Tensor
    twins: list[nn.Linear]
    kept: list[Tensor]
    reference: Reference

    @classmethod
    def of(cls, case: Case, x: Tensor, labels: Tensor, layers: Sequence[SparseLinear]) -> _Network:
        twins, kept = [layer.to_dense() for layer in layers], [layer.topology.weight_positions() for layer in layers]
        return cls(case, x, labels, twins, kept, Reference({}, 0.0)).to(x.dtype)

    def to(self, dtype: torch.dtype) -> _Network:
        """The same step, of numbers rounded to `dtype`.

        A ReLU whose input is one rounding error from zero may open for one contender only, and then a sample's whole share
        of a gradient differs: a network is held to 1 % of the norm, in half precision to what several roundings explain.
        """
        x = self.x.to(dtype)
        twins = [_linear(nn.Linear, twin.weight.to(dtype), twin.bias.to(dtype)) for twin in self.twins]
        exact = [_linear(nn.Linear, twin.weight.double(), twin.bias.double()) for twin in twins]
        out = _through(exact, x.double())
        functional.cross_entropy(out, self.labels).backward()
        reference = Reference(self._results(out, self._kept(exact)), max(1e-2, 16 * torch.finfo(dtype).eps), order=2)
        return replace(self, x=x, twins=twins, reference=reference)

    def sparse(self, layers: Sequence[SparseLinear]) -> Contender:
        """Pollard's."""
        return self._stepped(POLLARD, layers, lambda: [_gradient(layer.values) for layer in layers])

    def dense(self, prefix: str = "") -> DenseWays:
        """Torch's, each name with `prefix`."""

        def stepped(name: str, kind: type[nn.Linear]) -> Contender:
            layers = [_linear(kind, twin.weight, twin.bias) for twin in self.twins]
            return self._stepped(name, layers, lambda: self._kept(layers))

        return DenseWays({way: stepped(prefix + way, kind) for way, kind in layers_of(self.x.dtype).items()})

    def _stepped(self, name: str, layers: Sequence[nn.Module], gradients: Callable[[], list[Tensor]]) -> Contender:
        stepper = OPTIMIZERS[self.case.optimizer]([one for layer in layers for one in layer.parameters()])

        def call() -> Tensor:
            stepper.zero_grad(set_to_none=True)
            out = _through(layers, self.x)
            functional.cross_entropy(out, self.labels).backward()
            stepper.step()
            return out

        return Contender(name, call, lambda out: self._results(out, gradients()), self.reference)

    def _kept(self, layers: Sequence[nn.Linear]) -> list[Tensor]:
        return [_gradient(layer.weight).flatten()[at] for layer, at in zip(layers, self.kept, strict=True)]

    @staticmethod
    def _results(out: Tensor, gradients: list[Tensor]) -> dict[str, Tensor]:
        return {"output": out.detach()} | {f"gradient of layer {i}": grad for i, grad in enumerate(gradients)}


def _through(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    *hidden, last = layers
    for layer in hidden:
        x = functional.relu(layer(x))
    out: Tensor = last(x)
    return out


def _linear(kind: type[nn.Linear], weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A dense layer with copies of the weights: each contender trains its own."""
    layer = kind(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
