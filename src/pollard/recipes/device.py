"""The device that a run is on: how it goes, no part of what it computes."""

from __future__ import annotations

import torch

from pollard.errors import InvalidInput
from pollard.training import processes


def device_called(name: str) -> torch.device:
    """The device `name`, of which memory was asked; raises InvalidInput where it is not there, or several processes would share it.

    >>> device_called("cpu")
    device(type='cpu')
    """
    try:
        device = torch.empty(1, dtype=torch.uint8, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).strip().splitlines()[0].rstrip(".")
        raise InvalidInput(
            f"device {name!r}: {told:.120}",
            "a device that this torch can use: " + ", ".join(_there()),
            "Look at torch.cuda.is_available() and nvidia-smi, or leave the device out for the CPU.",
        ) from error
    if device.type == "meta":
        raise InvalidInput("device 'meta', which holds no numbers", "cpu, cuda, ...", "Leave the device out.")
    if device.type != "cpu" and processes.count() > 1:
        raise InvalidInput(
            f"{processes.count()} processes that train together on {name}",
            "processes on CPUs",
            "Leave the device out, or start one process: pollard train --device cuda.",
        )
    return device


def _there() -> list[str]:
    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
