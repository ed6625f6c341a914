"""Memory that ends where a page begins that nobody may touch."""

import ctypes
import mmap
from math import prod

import torch

PAGE = mmap.PAGESIZE
NOBODY = 0  # PROT_NONE
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(size, stride, dtype):
    """A tensor of any content, the last number of whose memory is the last before the guard."""
    count = 1 + sum((length - 1) * apart for length, apart in zip(size, stride, strict=True)) if prod(size) else 0
    needed = count * dtype.itemsize
    whole = -(-needed // PAGE) * PAGE
    span = mmap.mmap(-1, whole + PAGE)
    address = torch.frombuffer(span, dtype=torch.uint8).data_ptr()
    assert _protect(address + whole, PAGE, NOBODY) == 0
    return torch.frombuffer(span, dtype=dtype, count=count, offset=whole - needed).as_strided(size, stride)
