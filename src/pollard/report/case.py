"""What a benchmark times: a case, its operands, and what whoever competes must compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from pollard.arguments import require_density, require_one_of
from pollard.errors import InvalidInput, KernelError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology

# Each product, and what its result is called.
RESULTS = {"forward": "output", "input_grad": "input gradient", "value_grad": "value gradient"}
PRODUCTS = tuple(RESULTS)
OPERATIONS = (*PRODUCTS, "forward+backward", "step")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


@dataclass(frozen=True)
class Case:
    """What is timed: an operation on a weight of `shape` `(M, K)` = (out, in) with a batch of N, at `density` and `threads`.

    A case with `network` widths times a whole step of that network; its shape is then the largest layer's.
    Raises InvalidInput or PatternError for a case that cannot exist.

    >>> Case("forward", "v4", (64, 32, 8), 0.1)
    Case(op='forward', pattern='v4', shape=(64, 32, 8), density=0.1, threads=1, network=(), optimizer='adam', dtype='float32')
    """

    op: str
    pattern: str
    shape: tuple[int, int, int]
    density: float
    threads: int = 1
    network: tuple[int, ...] = ()
    optimizer: str = "adam"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_one_of("operation", self.op, OPERATIONS)
        require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        require_one_of("dtype", self.dtype, DTYPES)
        require_density(self.density)
        if min(*self.shape, *self.network, self.threads) < 1:
            sizes = "-".join(map(str, self.network)) or "x".join(map(str, self.shape))
            raise InvalidInput(f"{sizes} on {self.threads} threads", "sizes of at least 1", "Shapes read OUTxINxBATCH.")
        pattern = Pattern.parse(self.pattern)
        if not self.network:
            pattern.grid(self.shape[:2])


@dataclass(frozen=True)
class Operands:
    """One layer's numbers: batch `x` `(N, K)`, output gradient `grad` `(N, M)`, the weight, sparse and dense, and in a step a bias."""

    x: Tensor
    grad: Tensor
    values: Tensor
    topology: Topology
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def draw(cls, case: Case, generator: torch.Generator) -> Self:
        """Random operands of `case`, normal and rounded to its dtype, the weights scaled as a layer's would be."""
        rows, columns, batch = case.shape
        topology = Topology.random((rows, columns), case.density, case.pattern, generator=generator)
        fan_in = max(1.0, case.density * columns)
        normal = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
        values = normal(topology.nnz) / fan_in**0.5
        drawn = cls(
            x=normal(batch, columns),
            grad=normal(batch, rows),
            values=values,
            topology=topology,
            weight=SparseMatrix(values, topology).to_dense(),
            bias=normal(rows) if case.op == "step" else None,
        )
        return drawn.to(DTYPES[case.dtype])

    def to(self, dtype: torch.dtype) -> Self:
        """The same operands, rounded to `dtype`."""
        rounded = {name: getattr(self, name).to(dtype) for name in ("x", "grad", "values", "weight")}
        return replace(self, **rounded, bias=None if self.bias is None else self.bias.to(dtype))

    def kept(self, dense: Tensor) -> Tensor:
        """The entries of `dense` `(M, K)` that the topology keeps, in the order of values."""
        return dense.flatten()[self.topology.weight_positions()]


@dataclass(frozen=True)
class Reference:
    """What contenders of one precision must compute: `results` by name, in double precision, from the same rounded operands.

    allowed: the error that rounding explains, relative to the result's `order`-norm.
    """

    results: Mapping[str, Tensor]
    allowed: float
    order: float = torch.inf

    @classmethod
    def of(cls, operands: Operands) -> Self:
        """The three products in double precision, each `allowed` what summing in single and rounding the result explain.

        A sum of n terms is off by a few eps * sqrt(n), of the largest result; a result in half precision by half an eps of
        its own each time that it is rounded: the product, and the bias added to it.
        """
        x, grad, weight = operands.x.double(), operands.grad.double(), operands.weight.double()
        terms = max(*weight.shape, len(x))
        dtype = operands.x.dtype
        summed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        results = {
            "output": x @ weight.T + (0.0 if operands.bias is None else operands.bias.double()),
            "input gradient": grad @ weight,
            "value gradient": operands.kept(grad.T @ x),
        }
        return cls(results, allowed=8 * summed * float(terms) ** 0.5 + 2 * torch.finfo(dtype).eps)

    def hold(self, who: str, got: Mapping[str, Tensor]) -> None:
        """Raises KernelError where a result that `who` computed is off by more than what is allowed."""
        for name, result in got.items():
            want = self.results[name].flatten()
            size = want.norm(self.order).clamp_min(torch.finfo(want.dtype).tiny)
            error = float((result.to(want.dtype).flatten() - want).norm(self.order) / size)
            if not error <= self.allowed:
                raise KernelError(
                    f"{who}: {name} off by {error:.1e} of its size",
                    f"at most {self.allowed:.1e}",
                    "Run `pollard doctor`; POLLARD_TARGET=reference works around a faulty kernel.",
                )


@dataclass(frozen=True)
class Contender:
    """A named call, what of its result can be compared (by name), and with what."""

    name: str
    call: Callable[[], Any]
    comparable: Callable[[Any], dict[str, Tensor]]
    reference: Reference

    def verify(self) -> None:
        """Runs once and holds the result against the reference; this is also the first warm-up.

        Raises KernelError when it is off by more than rounding explains: a wrong result has no speed.
        """
        self.reference.hold(self.name, self.comparable(self.call()))
