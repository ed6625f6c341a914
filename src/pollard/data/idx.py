"""The IDX format of the MNIST family: a magic number, big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pollard.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_DIMENSIONS = 4
MAX_BYTES = 2**33


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor held by the IDX file at `path`, gzipped when its name ends in ``.gz``.

    Header: two zero bytes, the type (0x08, unsigned byte), the number of dimensions d, then d big-endian uint32 sizes.
    Raises DataError when the file cannot be read, is not IDX, or does not hold exactly the bytes its header promises.
    """
    raw = _contents(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != UNSIGNED_BYTE or not 1 <= raw[3] <= MAX_DIMENSIONS:
        raise DataError(
            f"{path} starting with bytes {raw[:4].hex(' ') or 'none'}",
            f"an IDX file of unsigned bytes: 00 00 08, then 01 to 0{MAX_DIMENSIONS}",
            "Check that this is the file that was meant; fetch it again if it was downloaded.",
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise _wrong_length(path, len(raw), start)
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) != start + math.prod(shape):
        raise _wrong_length(path, len(raw), start + math.prod(shape))
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape))


def write_idx(path: Path, tensor: Tensor) -> None:
    """Write the uint8 `tensor` to `path` as IDX.

    >>> write_idx(Path("labels"), torch.tensor([3, 1, 4], dtype=torch.uint8))
    >>> read_idx(Path("labels"))
    tensor([3, 1, 4], dtype=torch.uint8)
    """
    header = struct.pack(f">HBB{tensor.ndim}I", 0, UNSIGNED_BYTE, tensor.ndim, *tensor.shape)
    path.write_bytes(header + tensor.contiguous().numpy().tobytes())


def _contents(path: Path) -> bytearray:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            # A bytearray, because torch warns about tensors over memory that must not be written.
            raw = bytearray(file.read(MAX_BYTES))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: {error}", "a readable IDX file", "Restore the file, or fetch the data set again."
        ) from error
    return raw


def _wrong_length(path: Path, got: int, expected: int) -> DataError:
    return DataError(
        f"{path} with {got} bytes",
        f"{expected} bytes, as its header says",
        "It is truncated or damaged: fetch it again.",
    )
