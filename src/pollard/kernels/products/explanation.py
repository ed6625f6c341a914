"""Which kernel a product gets on this machine, and why: what `pollard explain` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pollard.activations import require_activation
from pollard.arguments import require_one_of
from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code import jit
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import current
from pollard.kernels.products import dispatch
from pollard.kernels.products.backend import CUDA, GENERATED, choose
from pollard.kernels.products.cuda import products as cuda
from pollard.kernels.products.generated import KERNELS, as_read
from pollard.kernels.products.generated import operation as kernel_for
from pollard.kernels.products.operand import Operand, name_of
from pollard.kernels.products.product import Product
from pollard.kernels.products.task import Kind, Task
from pollard.kernels.products.tuning import Choice

DTYPES = {name_of(each): each for each in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}


@dataclass(frozen=True, slots=True)
class Explanation:
    """The chosen kernel, the tile it walks, the reason, and the candidates with their microseconds."""

    spec: KernelSpec | None
    choice: str
    reason: str
    candidates: tuple[tuple[str, float], ...] = ()

    def ir(self) -> str:
        """The optimised LLVM IR of the chosen kernel; empty where plain torch runs."""
        return jit.optimised_ir(self.spec) if self.spec else ""

    def assembly(self) -> str:
        """The assembly of the chosen kernel; empty where plain torch runs."""
        return jit.assembly(self.spec) if self.spec else ""


def explain(
    operation: str,
    shape: tuple[int, int, int],
    density: float,
    pattern: str | Pattern,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    activation: str | None = None,
) -> Explanation:
    """Choose, tuning if need be, for a random topology of `shape` (out, in, batch), a row-major operand and torch's threads.

    operation: forward, input_grad or value_grad. dtype: float32, float64, bfloat16 or float16. device: as torch names it.
    activation: fused into a forward product. Raises InvalidInput on others.
    """
    require_one_of("operation", operation, KERNELS, "Name the product to explain.")
    require_one_of("dtype", dtype, DTYPES, "Name the dtype of the layer.")
    place = device_named(device)
    require_activation(activation)
    if activation is not None and operation != "forward":
        raise InvalidInput(f"activation {activation!r} of {operation}", "one of a forward product", "Leave it out.")
    backend, reason = choose(place, DTYPES[dtype])
    if backend not in (GENERATED, CUDA):
        return Explanation(None, backend.name, reason)
    out, width, batch = shape
    topology = Topology.random((out, width), density, pattern, torch.Generator().manual_seed(0))
    if backend is CUDA:
        return Explanation(None, _on_cuda(operation, topology, batch, DTYPES[dtype]), reason)
    values, x, grad = (
        torch.randn(size, dtype=torch.float32, device="cpu").to(DTYPES[dtype])
        for size in ((topology.nnz,), (batch, width), (batch, out))
    )
    runs: dict[str, tuple[Tensor, Callable[[], Tensor]]] = {
        "forward": (x, lambda: dispatch.forward(x, values, topology, activation=activation)),
        "input_grad": (grad, lambda: dispatch.input_grad(grad, values, topology)),
        "value_grad": (x, lambda: dispatch.value_grad(grad, x, topology)),
    }
    operand, run = runs[operation]
    run()
    return explain_run(operation, operand, topology, DTYPES[dtype], activation=activation)


def device_named(name: str) -> torch.device:
    """The device, which need not be there; raises InvalidInput where torch knows none of that name.

    >>> device_named("cuda")
    device(type='cuda')
    """
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"device {name!r}", "a device of torch's", "cpu or cuda, for example.") from error


def explain_run(
    operation: str,
    operand: Tensor,
    topology: Topology,
    values: torch.dtype,
    *,
    activation: str | None = None,
    rows: bool = False,
) -> Explanation:
    """What computes a product that has been computed already, with this operand and values of this dtype, on torch's threads.

    operand: x of a forward product and of a value gradient, else the output's gradient: `(batch, features)`. activation: fused into it. rows: of the result are contiguous.
    """
    backend, reason = choose(operand.device, operand.dtype)
    if backend is CUDA:
        return Explanation(None, _on_cuda(operation, topology, len(operand), operand.dtype), reason)
    if backend is not GENERATED:
        return Explanation(None, backend.name, reason)
    target = current()
    assert target is not None, "kernels are generated for it"
    named = name_of(values)
    read = as_read(operation, topology, Operand.of(operand), target, named)
    product = Product.of(kernel_for(operation, topology, read, target, named), topology, read, target, named, rows=rows)
    decision = product.decide(None)

    def describe(choice: Choice) -> str:
        spec = product.spec(choice, activation=activation or "")
        return f"{spec}, {f'tiles of {choice.width * topology.pattern.columns} columns' if spec.tiled else 'one tile'}"

    timed = tuple((describe(choice), microseconds) for choice, microseconds in decision.candidates)
    return Explanation(
        product.spec(decision.choice, activation=activation or ""), describe(decision.choice), decision.reason, timed
    )


def _on_cuda(operation: str, topology: Topology, batch: int, dtype: torch.dtype) -> str:
    return f"{CUDA.name}, {cuda.described(Task(cast('Kind', operation), dtype), topology, batch, dtype)}"


__all__ = ["DTYPES", "Explanation", "device_named", "explain", "explain_run"]
