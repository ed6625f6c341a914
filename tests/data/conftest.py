"""IDX files of a few pixels."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor


def _idx_bytes(tensor: Tensor) -> bytes:
    """The IDX file of a uint8 `tensor`."""
    header = bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
    return header + tensor.numpy().tobytes()


def _tiny_idx_files() -> dict[str, bytes]:
    """The four files of a data set of 6 + 4 images, 2 x 3, 3 classes, by name."""
    draw = torch.Generator().manual_seed(0)
    files = {}
    for part, count in (("train", 6), ("t10k", 4)):
        images = torch.randint(0, 256, (count, 2, 3), dtype=torch.uint8, generator=draw)
        files[f"{part}-images-idx3-ubyte"] = _idx_bytes(images)
        files[f"{part}-labels-idx1-ubyte"] = _idx_bytes(torch.arange(count, dtype=torch.uint8) % 3)
    return files


def _write_idx_folder(folder: Path, *, packed: bool = False) -> None:
    """The tiny data set in `folder`, gzipped if `packed`."""
    folder.mkdir(exist_ok=True)
    for name, content in _tiny_idx_files().items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[[Tensor], bytes]:
    """The IDX file of a uint8 tensor."""
    return _idx_bytes


@pytest.fixture(scope="session")
def tiny_idx_files() -> dict[str, bytes]:
    """The four files of a data set of 6 + 4 images, 2 x 3, 3 classes, by name."""
    return _tiny_idx_files()


@pytest.fixture(scope="session")
def write_idx_folder() -> Callable[..., None]:
    """Writes that data set into a folder, gzipped if `packed`."""
    return _write_idx_folder
