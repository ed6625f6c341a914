"""Room for large results, in spans of memory that are used again once nobody holds them.

torch takes its memory by `posix_memalign` from glibc, which maps large blocks by themselves only until the first is freed,
and takes them from its heap from then on, up to 32 MiB. An aligned block asks for more than its size, so that it does not fit
into the hole that its like has left: results that come and go at every step spread over twice what is held. To map each
anew would cost a step as much in fresh pages as some products take. A span is mapped once.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from operator import methodcaller

import torch
from torch import Tensor

from pollard.settings import Settings

LEAST, MOST = (
    1 << 20,
    32 << 20,
)  # bytes: smaller results leave small holes, larger ones are outside the heap in any case
SPANS = 64  # at most, of a thread
STALE = 1024  # results of a thread after which a span that served none of them is given back


class Span(mmap.mmap):
    """Memory that every tensor within it refers to, however it is detached, sliced or handed to others."""

    used = 0


class _Own(threading.local):
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.results = 0


_own = _Own()


def room(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """What makes a tensor of any content for a result, given an operand of it: no view of another.

    >>> room((2, 3), (1, 2))(torch.ones(1)).stride()
    (1, 2)
    """
    plain = methodcaller("new_empty_strided", size, stride, dtype=dtype)
    if not LEAST <= dtype.itemsize * prod(size) <= MOST:
        return plain

    def large(like: Tensor) -> Tensor:
        found = outside(prod(size), dtype)
        made: Tensor = plain(like) if found is None else found.as_strided_(size, stride)
        return made

    return large


def matrix(batch: int, features: int, dtype: str, *, rows: bool) -> tuple[Callable[[Tensor], Tensor], int]:
    """What makes room for a `(batch, features)` result of that dtype, its rows contiguous or its features, and how far apart those are.

    It is a tensor of its own, no view, so that it may be written to.
    """
    strides, apart = ((features, 1), features) if rows else ((1, batch), batch)
    return room((batch, features), strides, getattr(torch, dtype)), apart


def outside(count: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """`count` numbers of any content outside the heap, the caller's as long as anybody holds them; None where not."""
    span = _span(dtype.itemsize * count)
    return None if span is None else torch.frombuffer(span, dtype=dtype, count=count)


def held_bytes() -> int:
    """Bytes of the spans of this thread, in use or not."""
    return sum(map(len, _own.spans))


def release() -> None:
    """Give back the spans of this thread that nobody holds."""
    _give_back(lambda _: True)


def mapped(size: int) -> Span | None:
    """`size` bytes outside the heap; None where there is no reason to, or no room."""
    if not _can_map() or Settings.read().results == "heap":
        return None
    with suppress(OSError):
        # Not shared, as it would be by default: a process and its fork would write into each other's results.
        return Span(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return None


def _span(size: int) -> Span | None:
    """A span that nobody holds, the smallest that is neither too small nor more than twice too large, or a new one."""
    _own.results += 1
    if not _own.results % STALE:
        _give_back(lambda span: span.used <= _own.results - STALE)
    fitting = [span for span in _free() if size <= len(span) <= 2 * size]
    found = min(fitting, key=len, default=None) or _new(size)
    if found is not None:
        found.used = _own.results
    return found


def _new(size: int) -> Span | None:
    # Those a little smaller have been outgrown: where sizes vary there would be some of each.
    _give_back(lambda span: size // 2 <= len(span) < size)
    found = mapped(size) if len(_own.spans) < SPANS else None
    if found is not None:
        _own.spans.append(found)
    return found


def _give_back(unwanted: Callable[[Span], bool]) -> None:
    gone = {id(span) for span in _free() if unwanted(span)}
    _own.spans = [span for span in _own.spans if id(span) not in gone]


def _free() -> list[Span]:
    return [span for span, count in zip(_own.spans, _references(_own.spans), strict=True) if count == _ALONE]


def _references(things: Sequence[object]) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


# What is counted of something that only its list refers to: it differs between Pythons.
_ALONE = _references([object()])[0]


@cache
def _can_map() -> bool:
    """Whether there is glibc's heap to be kept clear, and a Python that counts references exactly."""
    exact = getattr(sys, "_is_gil_enabled", lambda: True)()
    with suppress(AttributeError, ValueError, OSError):  # names that only glibc's systems have
        return exact and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False
