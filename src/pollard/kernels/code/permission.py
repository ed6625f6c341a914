"""Leave to use the tiles of AMX: Linux gives it to a process that asks, since they are 8 KiB more to save of each thread."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18  # the system call on x86-64, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA


@cache
def refusal() -> str:
    """Why this process may not use tiles, "" where it may: asked for once, for all of its threads."""
    if sys.platform != "linux":
        return f"{sys.platform} is not known to give leave"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ARCH_PRCTL, ctypes.c_long(REQUEST), ctypes.c_long(TILE_DATA)) == 0:
        return ""
    return f"Linux gives no leave ({os.strerror(ctypes.get_errno())})"
