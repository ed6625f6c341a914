"""What computes the products of a layer: of these, the first that serves a device and a dtype. Chosen here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.errors import KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels.code.once import warn_once
from pollard.kernels.code.target import current
from pollard.kernels.products import generated, reference, torch_sparse
from pollard.kernels.products.cuda import products as cuda
from pollard.kernels.products.task import HALVES, Call, Task
from pollard.settings import Settings


@dataclass(frozen=True, slots=True)
class Backend:
    """Computes products that it does not refuse.

    refusal: why it does not serve a device and a dtype; None where it does. call: of a task, a topology and the tensors of the
    first call, what computes it for all of such shapes, strides and dtypes; may raise KernelError. tuned: whether it is one of ours for that device, or torch's own, of which it is told. mixed: whether values
    may be float32 where all else is in half precision. ordered: what brings gradients such as the one of the first call into the order that both of their
    products would bring them into; None where there is none. May raise KernelError.
    """

    name: str
    refusal: Callable[[torch.device, torch.dtype], str | None]
    call: Callable[[Task, Topology, tuple[Tensor, ...]], Call]
    tuned: bool = False
    mixed: bool = False
    ordered: Callable[[Topology, Tensor], Callable[[Tensor], Tensor] | None] = lambda *_: None


def choose(device: torch.device, dtype: torch.dtype) -> tuple[Backend, str]:
    """The backend of products on `device` in `dtype`, and why: what those before it refused, or that it was asked for."""
    if Settings.asked_target() == "reference":
        return BACKENDS[-1], "POLLARD_TARGET asks for the reference"
    reasons: list[str] = []
    for backend in BACKENDS[:-1]:
        refused = backend.refusal(device, dtype)
        if refused is None:
            return backend, "; ".join(reasons) or f"serves {dtype} on {device.type!r}"
        reasons.append(f"{backend.name}: {refused}")
    return BACKENDS[-1], "; ".join(reasons)


def tell_untuned(device: torch.device) -> None:
    """Warn, once a kind of device, that no kernel of ours runs there."""
    if device.type not in ("cpu", "meta") and not choose(device, torch.float32)[0].tuned:
        warn_once(
            f"No kernel of Pollard's runs on {device.type!r} yet: torch's own sparse products do, where it has them for that "
            "device, and are not tuned. Memory is saved, time may not be.",
            KernelFallback,
        )


def _of_module(ways: Any, task: Task, topology: Topology) -> Call:
    """The product of that kind by a module that has functions for all three, of grains one column wide."""
    topology = topology.vectors
    product: Call = getattr(ways, task.kind)
    options = {"activation": task.activation} if task.kind == "forward" else {}
    return lambda left, right, *bias: product(left, right, topology, *bias, **options)


def _not_generated(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return "kernels are generated for CPUs"
    if current() is None:
        return "no kernel is generated for this CPU"
    return None if dtype in (torch.float32, *HALVES) else f"no kernel computes in {dtype}"


def _not_sparse(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in torch_sparse.DEVICES:
        return f"torch is not known to have them on {device.type!r}"
    return None if dtype in torch_sparse.DTYPES else f"torch has no such products in {dtype}"


GENERATED = Backend("generated kernels", _not_generated, generated.call, tuned=True, mixed=True)
CUDA = Backend("Triton kernels", cuda.refusal, cuda.call, tuned=True, mixed=True, ordered=cuda.ordered)
TORCH_SPARSE = Backend("torch.sparse", _not_sparse, lambda task, topology, _: _of_module(torch_sparse, task, topology))
REFERENCE = Backend("reference", lambda *_: None, lambda task, topology, _: _of_module(reference, task, topology))
BACKENDS = (GENERATED, CUDA, TORCH_SPARSE, REFERENCE)

__all__ = ["BACKENDS", "CUDA", "GENERATED", "REFERENCE", "TORCH_SPARSE", "Backend", "choose", "tell_untuned"]
