"""What happens where no kernel can run: the slow twin takes over, after one warning if a kernel was meant to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pollard.errors import KernelError, KernelFallback
from pollard.kernels.once import warn_once
from pollard.kernels.target import Target, current

Made = TypeVar("Made")


def attempt(fast: Callable[[Target], Made]) -> Made | None:
    """What `fast` makes for the target in force; None where that is plain torch, or the kernel does not compile."""
    target = current()
    if target is None:
        return None
    try:
        return fast(target)
    except KernelError as refused:
        warn(str(refused))
        return None


def warn(message: str) -> None:
    """Warn with KernelFallback, once for every message."""
    warn_once(f"{message} Plain torch runs instead, slowly.", KernelFallback)
