"""What happens where no kernel can run: the slow twin takes over, after one warning if a kernel was meant to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pollard.errors import KernelError, KernelFallback
from pollard.kernels.code.once import warn_once
from pollard.kernels.code.target import Target, current
from pollard.settings import Settings

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


def warn_without_kernels() -> None:
    """Warn, once, that this CPU has no kernels; who asked for plain torch by POLLARD_TARGET knows."""
    if Settings.asked_target() == "auto":
        warn(
            "No kernel is generated for this CPU: it has neither AVX2 with FMA nor NEON. torch's own sparse products run, which "
            "may be many times slower than the dense layer."
        )


def warn(message: str) -> None:
    """Warn with KernelFallback, once for every message."""
    warn_once(f"{message} Plain torch runs instead, slowly.", KernelFallback)
