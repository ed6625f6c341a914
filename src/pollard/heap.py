"""Memory that the C library has been given back and keeps."""

from __future__ import annotations

import ctypes


def hand_back() -> None:
    """Hand freed memory back to the system, where the C library can: glibc keeps it otherwise, and peaks add up."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


__all__ = ["hand_back"]
