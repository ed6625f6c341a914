"""Which machine a figure was measured on, and which libraries did dense torch's part of it."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch

from pollard.kernels.code import target


def machine() -> dict[str, str]:
    """CPU, instruction set of Pollard's kernels and of torch's, and the versions of torch and its BLAS libraries.

    >>> sorted(machine())
    ['cpu', 'kernels', 'mkl', 'onednn', 'torch', 'torch_capability']
    """
    isa = target.current()
    return {
        "cpu": cpu_name(),
        "kernels": isa.isa if isa else "reference",
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": _built_with(r"Math Kernel Library Version ([\w.]+)"),
        "onednn": _built_with(r"MKL-DNN v([\w.]+)"),
    }


def device_name(device: torch.device) -> str:
    """The model of a GPU, as its driver calls it; of any other device, its kind.

    >>> device_name(torch.device("cpu"))
    'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def cpu_name() -> str:
    """The model of the CPU, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _built_with(version: str) -> str:
    found = re.search(version, torch.__config__.show())
    return found[1] if found else "none"
