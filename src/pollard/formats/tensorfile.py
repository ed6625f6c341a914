"""safetensors files, read straight into tensors that own their memory, and a digest over all that they mean."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import StoreError
from pollard.reading import LARGEST, parse_json

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
EXPECTED = "a whole file that Pollard wrote"
FIX = "Write it again: it is truncated, damaged or foreign."
_PREFIX = 8  # bytes that say how long the header is


class _Place(NamedTuple):
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
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            texts, places = _header(path, file, size)
            tensors = {place.name: _tensor(path, file, place) for place in places}
    except (OSError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{path}: {getattr(error, 'strerror', None) or error}", "a file that can be read", "Check the path."
        ) from error
    return dict(sorted(tensors.items())), texts


def digest_of(tensors: Mapping[str, Tensor], text: str) -> str:
    """32 hex digits that stand for `text` and the names, dtypes, shapes and bytes of contiguous `tensors`: BLAKE2b.

    >>> digest_of({"w": torch.ones(2)}, "") == digest_of({"w": torch.ones(2)}, "")
    True
    >>> digest_of({"w": torch.ones(2)}, "") == digest_of({"w": torch.ones(2, 1)}, "")
    False
    """
    digest = hashlib.blake2b(_framed(text), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(_framed(name) + _framed(f"{tensor.dtype} {tuple(tensor.shape)}"))
        digest.update(_memory(tensor))
    return digest.hexdigest()


def damaged(path: str | PathLike[str], found: str) -> StoreError:
    """The error for a file in which `found` was found."""
    return StoreError(f"{path} with {found}", EXPECTED, FIX)


def _header(path: str | PathLike[str], file: BufferedReader, size: int) -> tuple[dict[str, str], list[_Place]]:
    """Texts and places of a file of `size` bytes; raises StoreError unless tensors fill all of it behind the header."""
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


def _place(name: str, entry: Mapping[str, Any], offset: int) -> _Place:
    """An entry of the header; raises KeyError, TypeError or ValueError where it is none."""
    start, stop = map(operator.index, entry["data_offsets"])
    shape = torch.Size(entry["shape"])
    if min(shape, default=0) < 0:
        raise damaged(name, f"shape {tuple(shape)}")
    return _Place(offset + start, offset + stop, name, DTYPES[entry["dtype"]], shape)


def _tensor(path: str | PathLike[str], file: BufferedReader, place: _Place) -> Tensor:
    tensor = torch.empty(place.shape, dtype=place.dtype, device="cpu")
    memory = _memory(tensor)
    file.seek(place.start)
    if len(memory) and file.readinto(memory) != len(memory):
        raise damaged(path, f"an end within {place.name!r}")
    if place.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise damaged(path, f"bools in {place.name!r} that are neither")
    return tensor


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not a copy."""
    # Without entries, strides may be such that torch shows no bytes.
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _framed(text: str) -> bytes:
    """`text` as bytes that say first how many they are, so that no two texts run into each other alike."""
    content = text.encode("utf-8", "surrogatepass")
    return len(content).to_bytes(_PREFIX, "little") + content
