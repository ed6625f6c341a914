"""What a process and a model hold in memory, in bytes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from pollard.kernels.products.derived import derived_bytes
from pollard.nn.linear import SparseLinear
from pollard.reading import STATUS, told_bytes

KIB = 1024


def forget_peak_rss() -> None:
    """Have the peak of this process start anew from what it holds now, where the system can: it may serve many runs."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True, slots=True)
class ModuleBytes:
    """Bytes by what they are for.

    values: kept weights of sparse layers. indices: their topologies and what kernels derived from them, transposes included.
    dense: all other parameters. gradients: one per trainable parameter, as every step holds them.
    optimizer: state tensors. buffers: of the modules, masks of masked layers among them.
    """

    values: int
    indices: int
    dense: int
    gradients: int
    optimizer: int
    buffers: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.values + self.indices + self.dense + self.gradients + self.optimizer + self.buffers


def module_bytes(model: nn.Module, optimizer: Optimizer | None = None) -> ModuleBytes:
    """Exact bytes of the tensors that training `model` with `optimizer` holds; shared tensors count once.

    >>> bytes_held = module_bytes(nn.Linear(3, 2))
    >>> bytes_held.dense, bytes_held.gradients, bytes_held.total
    (32, 32, 64)
    """
    sparse = [module for module in model.modules() if isinstance(module, SparseLinear)]
    topologies = {id(layer.topology): layer.topology for layer in sparse}
    values = {id(layer.values) for layer in sparse}
    index_buffers = {id(buffer) for layer in sparse for buffer in layer.buffers(recurse=False)}
    parameters = list(model.parameters())
    return ModuleBytes(
        values=_bytes(parameter for parameter in parameters if id(parameter) in values),
        indices=sum(topology.bytes + derived_bytes(topology) for topology in topologies.values()),
        dense=_bytes(parameter for parameter in parameters if id(parameter) not in values),
        gradients=_bytes(parameter for parameter in parameters if parameter.requires_grad),
        optimizer=0 if optimizer is None else _optimizer_bytes(optimizer),
        buffers=_bytes(buffer for buffer in model.buffers() if id(buffer) not in index_buffers),
    )


def peak_rss_bytes() -> int:
    """The most memory this process has had resident so far."""
    # Linux hands ru_maxrss down through exec, so that a small child reports its large parent's peak; VmHWM starts anew.
    if (line := told_bytes(STATUS, "VmHWM")) is not None:
        return line
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB


def rss_bytes() -> int:
    """The memory this process has resident now; where the system does not tell, its peak."""
    return now if (now := told_bytes(STATUS, "VmRSS")) is not None else peak_rss_bytes()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_bytes(optimizer: Optimizer) -> int:
    return _bytes(entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, Tensor))
