"""safetensors files, read straight into tensors that own their memory, and a digest over all that they mean."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import PollardError, StoreError
from pollard.reading import LARGEST, parse_json

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
EXPECTED = "a whole safetensors file"
FIX = "Write or fetch it again: it is truncated, damaged or of another kind."
_PREFIX = 8  # bytes that say how long the header is


class Place(NamedTuple):
    """Where a tensor lies behind the header, from byte `start` to `stop`, and what it is."""

    start: int
    stop: int
    name: str
    dtype: torch.dtype
    shape: torch.Size


def read_tensors(path: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, by name in order, and the texts of its header.

    Each is read into memory of its own: nothing is held twice, and nothing done to the file later reaches it. Raises
    StoreError on a file that is missing, truncated, damaged or of another kind.
    """
    with opened(path) as file:
        texts, places = header_of(path, file)
        tensors = {place.name: _tensor(path, file, place) for place in places}
    return dict(sorted(tensors.items())), texts


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[BufferedReader]:
    """The file at `path`, closed in the end; raises StoreError where it cannot be opened, or be read in the block."""
    try:
        with Path(path).open("rb") as file:
            yield file
    except (OSError, ValueError) as error:
        if isinstance(error, PollardError):
            raise
        raise StoreError(
            f"{path}: {getattr(error, 'strerror', None) or error}", "a file that can be read", "Check the path."
        ) from error


def digest_of(tensors: Mapping[str, Tensor], text: str) -> str:
    """32 hex digits that stand for `text` and the names, dtypes, shapes and bytes of contiguous `tensors`: BLAKE2b.

    >>> digest_of({"w": torch.ones(2)}, "") == digest_of({"w": torch.ones(2)}, "")
    True
    >>> digest_of({"w": torch.ones(2)}, "") == digest_of({"w": torch.ones(2, 1)}, "")
    False
    """
    digest = Digest(text)
    for name, tensor in sorted(tensors.items()):
        digest.begin(name, tensor.dtype, tuple(tensor.shape))
        digest.update(memory_of(tensor))
    return digest.told()


class Digest:
    """What `digest_of` tells, of tensors that come one after the other, by name in order, some bytes at a time.

    >>> digest = Digest("")
    >>> digest.begin("w", torch.float32, (2,))
    >>> for one in torch.ones(2).split(1):
    ...     digest.update(memory_of(one))
    >>> digest.told() == digest_of({"w": torch.ones(2)}, "")
    True
    """

    def __init__(self, text: str) -> None:
        self._made = hashlib.blake2b(_framed(text), digest_size=16)

    def begin(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """The bytes that come next are of this tensor."""
        self._made.update(_framed(name) + _framed(f"{dtype} {shape}"))

    def update(self, content: memoryview) -> None:
        """Its next bytes."""
        self._made.update(content)

    def told(self) -> str:
        """The 32 hex digits of all that came."""
        return self._made.hexdigest()


def damaged(path: str | PathLike[str], found: str, expected: str = EXPECTED) -> StoreError:
    """The error for a file in which `found` was found."""
    return StoreError(f"{path} with {found}", expected, FIX)


def header_of(path: str | PathLike[str], file: BufferedReader) -> tuple[dict[str, str], list[Place]]:
    """Texts and places of a file; raises StoreError unless tensors fill all of it behind the header."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(_PREFIX), "little")
    if not 0 < length <= min(LARGEST, size - _PREFIX):
        raise damaged(path, f"{size:,} bytes, {length:,} of them its header")
    header = parse_json(file.read(length), f"{path}, its header", EXPECTED, FIX)
    end = _PREFIX + length
    try:
        texts = dict(header.pop("__metadata__", None) or {})
        places = sorted(_place(name, entry, end) for name, entry in header.items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"no header of safetensors ({error!r})") from error
    for place in places:
        if place.start != end or place.stop - end != math.prod(place.shape) * place.dtype.itemsize:
            raise damaged(path, f"{place.name!r} out of place")
        end = place.stop
    if end != size:
        raise damaged(path, f"{size:,} bytes where its header says {end:,}")
    return texts, places


def _place(name: str, entry: Mapping[str, Any], offset: int) -> Place:
    """An entry of the header; raises KeyError, TypeError or ValueError where it is none."""
    start, stop = map(operator.index, entry["data_offsets"])
    shape = torch.Size(entry["shape"])
    if min(shape, default=0) < 0:
        raise damaged(name, f"shape {tuple(shape)}")
    return Place(offset + start, offset + stop, name, DTYPES[entry["dtype"]], shape)


def _tensor(path: str | PathLike[str], file: BufferedReader, place: Place) -> Tensor:
    tensor = torch.empty(place.shape, dtype=place.dtype, device="cpu")
    read_into(path, file, place, tensor)
    return tensor


def read_into(path: str | PathLike[str], file: BufferedReader, place: Place, tensor: Tensor, skip: int = 0) -> None:
    """Fills contiguous `tensor` with what lies at `place`, after `skip` bytes of it."""
    memory = memory_of(tensor)
    file.seek(place.start + skip)
    if len(memory) and file.readinto(memory) != len(memory):
        raise damaged(path, f"an end within {place.name!r}")
    if place.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise damaged(path, f"bools in {place.name!r} that are neither")


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not a copy."""
    # Without entries, strides may be such that torch shows no bytes.
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _framed(text: str) -> bytes:
    """`text` as bytes that say first how many they are, so that no two texts run into each other alike."""
    content = text.encode("utf-8", "surrogatepass")
    return len(content).to_bytes(_PREFIX, "little") + content
