"""Who competes in a benchmark: Pollard, dense torch, and the sparse libraries that happen to be installed.

Every contender of a case computes the same function of the same weights, batch first in and out, as a user would call it;
what a contender spends on packing, transposing or wrapping is its own time. Peers are spared whatever they could prepare
once: their transposed copy of the weights is made beforehand, though training would have to make it at every step.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.ops import matmul

OPERATIONS = ("forward", "input_grad", "value_grad", "forward+backward", "step")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}


@dataclass(frozen=True)
class Case:
    """What is timed: an operation on a weight of `shape` `(M, K)` = (out, in) with a batch of N, at `density` and `threads`.

    A case with `network` widths times a whole step of that network; its shape is then the largest layer's.
    Raises InvalidInput or PatternError for a case that cannot exist.

    >>> Case("forward", "v4", (64, 32, 8), 0.1)
    Case(op='forward', pattern='v4', shape=(64, 32, 8), density=0.1, threads=1, network=(), optimizer='adam')
    """

    op: str
    pattern: str
    shape: tuple[int, int, int]
    density: float
    threads: int = 1
    network: tuple[int, ...] = ()
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        _require_one_of(OPERATIONS, "operation", self.op)
        _require_one_of(tuple(OPTIMIZERS), "optimizer", self.optimizer)
        if not 0 < self.density <= 1:
            raise InvalidInput(
                f"density {self.density}", "a density in (0, 1]", "Density is the fraction kept: 0.1 is 90 % sparse."
            )
        if min(*self.shape, *self.network, self.threads) < 1:
            sizes = "-".join(map(str, self.network)) or "x".join(map(str, self.shape))
            raise InvalidInput(f"{sizes} on {self.threads} threads", "sizes of at least 1", "Shapes read OUTxINxBATCH.")
        pattern = Pattern.parse(self.pattern)
        if not self.network:
            pattern.grid(self.shape[:2])


def _require_one_of(allowed: tuple[str, ...], what: str, got: str) -> None:
    if got not in allowed:
        raise InvalidInput(f"{what} {got!r}", "one of " + ", ".join(allowed), f"Choose the {what} from that list.")


@dataclass(frozen=True)
class Contender:
    """A named call, and what of its result can be compared with the other contenders' (by name)."""

    name: str
    call: Callable[[], Any]
    comparable: Callable[[Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Contest:
    """The contenders of one case, Pollard first and dense second, and the floating-point operations of the kept weights."""

    contenders: list[Contender]
    flops: int


@dataclass(frozen=True)
class Operands:
    """One layer's numbers: batch `x` `(N, K)`, output gradient `grad` `(N, M)`, and the weight, sparse and dense."""

    x: Tensor
    grad: Tensor
    values: Tensor
    topology: Topology
    weight: Tensor

    @classmethod
    def draw(cls, case: Case, generator: torch.Generator) -> Operands:
        """Random operands of `case`, normal, the weights scaled as a layer's would be."""
        rows, columns, batch = case.shape
        topology = Topology.random((rows, columns), case.density, case.pattern, generator=generator)
        fan_in = max(1.0, case.density * columns)
        values = torch.randn(topology.nnz, generator=generator, dtype=torch.float32, device="cpu") / fan_in**0.5
        return cls(
            x=torch.randn(batch, columns, generator=generator, dtype=torch.float32, device="cpu"),
            grad=torch.randn(batch, rows, generator=generator, dtype=torch.float32, device="cpu"),
            values=values,
            topology=topology,
            weight=SparseMatrix(values, topology).to_dense(),
        )

    def kept(self, dense: Tensor) -> Tensor:
        """The entries of `dense` `(M, K)` that the topology keeps, in the order of values."""
        return dense.flatten()[self.topology.weight_positions()]


def contest(case: Case, *, peers: bool = True, seed: int = 0) -> Contest:
    """The contenders of `case` on random operands drawn from `seed`; optional libraries take part where `peers`."""
    generator = torch.Generator().manual_seed(seed)
    if case.network:
        return _network(case, generator)
    operands = Operands.draw(case, generator)
    if case.op == "step":
        contenders = _trained(operands, bias=True, optimizer=OPTIMIZERS[case.optimizer])
    else:
        contenders = _LAYER[case.op](operands)
    products = 3 if case.op in ("forward+backward", "step") else 1
    flops = 2 * products * operands.topology.nnz * case.shape[2]
    return Contest(contenders + (_peers(operands, case.op) if peers else []), flops)


def _forward(operands: Operands) -> list[Contender]:
    sparse, dense = _pair(operands, bias=False)

    @torch.no_grad()
    def run(module: nn.Module) -> Tensor:
        out: Tensor = module(operands.x)
        return out

    return [
        Contender("pollard", lambda: run(sparse), _named("output")),
        Contender("dense", lambda: run(dense), _named("output")),
    ]


def _input_grad(operands: Operands) -> list[Contender]:
    grad, values, topology, weight = operands.grad, operands.values, operands.topology, operands.weight
    return [
        Contender("pollard", lambda: matmul.input_grad(grad, values, topology), _named("input gradient")),
        Contender("dense", lambda: grad @ weight, _named("input gradient")),
    ]


def _value_grad(operands: Operands) -> list[Contender]:
    grad, x, topology = operands.grad, operands.x, operands.topology
    return [
        Contender("pollard", lambda: matmul.value_grad(grad, x, topology), _named("value gradient")),
        Contender("dense", lambda: grad.T @ x, lambda full: {"value gradient": operands.kept(full)}),
    ]


def _forward_backward(operands: Operands) -> list[Contender]:
    return _trained(operands, bias=False, optimizer=None)


def _trained(
    operands: Operands, *, bias: bool, optimizer: Callable[[Any], torch.optim.Optimizer] | None
) -> list[Contender]:
    """Both modules forward and backward, as a hidden layer: the input wants its gradient too; then the optimizer's step."""
    sparse, dense = _pair(operands, bias=bias)

    def contender(name: str, module: nn.Module, values_of: Callable[[], Tensor]) -> Contender:
        x = operands.x.clone().requires_grad_()
        stepper = optimizer(module.parameters()) if optimizer else None

        def call() -> Tensor:
            x.grad = None
            module.zero_grad(set_to_none=True)
            out: Tensor = module(x)
            out.backward(operands.grad)
            if stepper:
                stepper.step()
            return out

        def comparable(out: Tensor) -> dict[str, Tensor]:
            assert x.grad is not None
            return {"output": out.detach(), "input gradient": x.grad, "value gradient": values_of()}

        return Contender(name, call, comparable)

    return [
        contender("pollard", sparse, lambda: _gradient(sparse.values)),
        contender("dense", dense, lambda: operands.kept(_gradient(dense.weight))),
    ]


_LAYER: dict[str, Callable[[Operands], list[Contender]]] = {
    "forward": _forward,
    "input_grad": _input_grad,
    "value_grad": _value_grad,
    "forward+backward": _forward_backward,
}


def _network(case: Case, generator: torch.Generator) -> Contest:
    """Whole steps of a ReLU network on random labels; layers whose rows the pattern does not divide are unstructured."""
    widths, batch = case.network, case.shape[2]
    layers = [_sparse_layer(case, shape, generator) for shape in pairwise(widths)]
    x = torch.randn(batch, widths[0], generator=generator, dtype=torch.float32, device="cpu")
    labels = torch.randint(widths[-1], (batch,), generator=generator, dtype=torch.int64, device="cpu")

    def contender(name: str, modules: Sequence[nn.Module], gradients: Callable[[], list[Tensor]]) -> Contender:
        model = nn.Sequential(*(part for module in modules for part in (module, nn.ReLU())))[:-1]
        stepper = OPTIMIZERS[case.optimizer](model.parameters())

        def call() -> Tensor:
            stepper.zero_grad(set_to_none=True)
            out: Tensor = model(x)
            functional.cross_entropy(out, labels).backward()
            stepper.step()
            return out

        def comparable(out: Tensor) -> dict[str, Tensor]:
            return {"output": out.detach()} | {f"gradient of layer {i}": g for i, g in enumerate(gradients())}

        return Contender(name, call, comparable)

    twins = [layer.to_dense() for layer in layers]
    kept = [layer.topology.weight_positions() for layer in layers]
    contenders = [
        contender("pollard", layers, lambda: [_gradient(layer.values) for layer in layers]),
        contender(
            "dense",
            twins,
            lambda: [_gradient(twin.weight).flatten()[at] for twin, at in zip(twins, kept, strict=True)],
        ),
    ]
    # The first layer's input is data: it needs no gradient.
    products = 3 * sum(layer.topology.nnz for layer in layers) - layers[0].topology.nnz
    return Contest(contenders, 2 * products * batch)


def _sparse_layer(case: Case, shape: tuple[int, int], generator: torch.Generator) -> SparseLinear:
    in_features, out_features = shape
    fits = Pattern.parse(case.pattern).fits((out_features, in_features))
    pattern = case.pattern if fits else "unstructured"
    return SparseLinear.random(in_features, out_features, density=case.density, pattern=pattern, generator=generator)


def _pair(operands: Operands, *, bias: bool) -> tuple[SparseLinear, nn.Linear]:
    """The sparse module and its dense twin, with the same weights."""
    rows, columns = operands.topology.shape
    sparse = SparseLinear(columns, rows, operands.topology, bias=bias)
    with torch.no_grad():
        sparse.values.copy_(operands.values)
    return sparse, sparse.to_dense()


def _peers(operands: Operands, op: str) -> list[Contender]:
    """torch.sparse CSR, MKL through sparse_dot_mkl and SciPy, where they are installed and have the operation."""
    makers = (_torch_sparse, _scipy, _mkl)
    return [peer for make in makers if (peer := make(operands, op)) is not None]


def _torch_sparse(operands: Operands, op: str) -> Contender | None:
    grad, x = operands.grad, operands.x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        weight = SparseMatrix(operands.values, operands.topology).to_torch_csr()
        back = operands.weight.T.contiguous().to_sparse_csr() if op in ("input_grad", "forward+backward") else weight
    rows = torch.arange(weight.shape[0], dtype=torch.int64, device="cpu").repeat_interleave(
        weight.crow_indices().diff()
    )
    positions = rows * weight.shape[1] + weight.col_indices()
    # The sampled product comes row by row, the values of a coarser grain do not.
    by_grain = torch.searchsorted(positions, operands.topology.weight_positions())

    def sampled() -> Tensor:
        out: Tensor = torch.sparse.sampled_addmm(weight, grad.T, x, beta=0.0).values()
        return out

    calls: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]]]] = {
        "forward": (lambda: (weight @ x.T).T, _named("output")),
        "input_grad": (lambda: (back @ grad.T).T, _named("input gradient")),
        "value_grad": (sampled, lambda out: {"value gradient": out[by_grain]}),
        "forward+backward": (
            lambda: ((weight @ x.T).T, (back @ grad.T).T, sampled()),
            lambda out: {"output": out[0], "input gradient": out[1], "value gradient": out[2][by_grain]},
        ),
    }
    if op not in calls:
        return None
    call, comparable = calls[op]
    try:
        call()
    except RuntimeError:
        # A torch that was built without MKL has no CSR product on the CPU: nothing to compare with.
        return None
    return Contender("torch_sparse", call, comparable)


def _scipy(operands: Operands, op: str) -> Contender | None:
    return _with_arrays("scipy", operands, op, lambda weight, batch: weight @ batch)


def _mkl(operands: Operands, op: str) -> Contender | None:
    # MKL brings a thread pool of its own, whose idle threads would spin on the cores that the next contender needs.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    try:
        library = importlib.import_module("sparse_dot_mkl")
    except ImportError:
        return None
    library.mkl_set_num_threads(torch.get_num_threads())
    # With the batch strided MKL takes twice as long as it and a copy together.
    return _with_arrays(
        "mkl", operands, op, lambda weight, batch: library.dot_product_mkl(weight, np.ascontiguousarray(batch))
    )


def _with_arrays(name: str, operands: Operands, op: str, product: Callable[[Any, Any], Any]) -> Contender | None:
    """A contender that multiplies a SciPy CSR by a NumPy matrix, features first: the transposes are views."""
    if op == "forward":
        weight, batch, result = csr_array(operands.weight.numpy()), operands.x.numpy().T, "output"
    elif op == "input_grad":
        weight, batch, result = csr_array(operands.weight.numpy().T), operands.grad.numpy().T, "input gradient"
    else:
        return None
    return Contender(name, lambda: product(weight, batch).T, lambda out: {result: torch.from_numpy(out)})


def _named(name: str) -> Callable[[Any], dict[str, Tensor]]:
    return lambda result: {name: result}


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
