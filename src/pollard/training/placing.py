"""A run on another device than the CPU: what is drawn on the host is sent there, and losses come back some at a time."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

TOGETHER = 50  # losses that are read at once from a device: for each one read it would have to come to rest


def device_of(model: nn.Module) -> torch.device:
    """The device of `model`'s first parameter or buffer; the CPU, where it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`, which is not waited for."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def in_own_order(x: Tensor) -> Tensor:
    """`x` as the device's convolutions go through it: images by pixels elsewhere than on the CPU, all else as it is."""
    return x if x.device.type == "cpu" or x.dim() != 4 else x.contiguous(memory_format=torch.channels_last)


class Losses:
    """Losses of steps, held as they were computed until they are read: each at once on the CPU, 50 together elsewhere.

    >>> losses = Losses(torch.device("cpu"))
    >>> losses.add(torch.tensor(0.5))
    >>> losses.due, losses.read(), losses.read()
    (True, [0.5], [])
    """

    def __init__(self, device: torch.device) -> None:
        self._most = 1 if device.type == "cpu" else TOGETHER
        self._held: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Hold one more."""
        self._held.append(loss)

    @property
    def due(self) -> bool:
        """Whether it is time to read them."""
        return len(self._held) >= self._most

    def read(self) -> list[float]:
        """What is held, the oldest first; nothing is held then."""
        found: list[float] = torch.stack(self._held).cpu().tolist() if self._held else []
        self._held.clear()
        return found
