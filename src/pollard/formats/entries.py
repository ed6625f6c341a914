"""Tensors in files, of which any part can be read, and nothing is until it is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from pollard.errors import StoreError
from pollard.formats.tensorfile import Place, header_of, opened, read_into
from pollard.reading import read_json

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
PIECE = 1 << 21  # numbers that are read at once


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A tensor in a safetensors file: where it lies, and what the file was when that was found out.

    The file is opened for each reading and closed after it: an entry holds nothing open, and goes wherever its path is valid. Raises
    StoreError where the file is not there any more, or another than it was: by its size and the time of its last change.
    """

    path: Path
    place: Place
    stamp: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers in the file."""
        return self.place.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.place.shape)

    def read(self, first: int, last: int) -> Tensor:
        """Numbers `first` to `last - 1`, counted through all axes: `(last - first,)`."""
        made = torch.empty(last - first, dtype=self.dtype, device="cpu")
        with opened(self.path) as file:
            if _stamp(file) != self.stamp:
                raise StoreError(
                    f"{self.path}, changed since {self.place.name!r} was found in it",
                    "a file that stays as it is while its numbers are needed",
                    "Load it again, and write new files under other names.",
                )
            read_into(self.path, file, self.place, made, first * self.dtype.itemsize)
        return made

    def whole(self) -> Tensor:
        """All of it."""
        return self.read(0, math.prod(self.shape)).view(self.shape)

    def pieces(self) -> Iterator[Tensor]:
        """All of it, some numbers at a time."""
        count = math.prod(self.shape)
        return (self.read(first, min(count, first + PIECE)) for first in range(0, count, PIECE))


def entries(path: str | PathLike[str]) -> dict[str, Entry]:
    """The tensors of a safetensors file, or of those in a folder that `save_pretrained` wrote, by name; only headers are read.

    Raises StoreError where there is no such file, or one is truncated, damaged or of another kind.

    >>> from pollard.formats.store import save_tensors
    >>> save_tensors("weights.safetensors", {"w": torch.arange(6.0).view(2, 3)}, {})
    >>> entries("weights.safetensors")["w"].read(2, 5)
    tensor([2., 3., 4.])
    """
    whole = Path(path)
    found: dict[str, Entry] = {}
    for each in files_of(whole) if whole.is_dir() else [whole]:
        if each.suffix == ".bin":
            raise StoreError(
                f"{each}, a pickle, of which no part can be read alone",
                "safetensors files",
                "Write it anew once: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path).",
            )
        with opened(each) as file:
            _, places = header_of(each, file)
            stamp = _stamp(file)
        found |= {place.name: Entry(each.resolve(), place, stamp) for place in places}
    return dict(sorted(found.items()))


def files_of(folder: Path) -> list[Path]:
    """The files with the weights of a model that `save_pretrained` wrote: one, or as many as an index names."""
    for name in (name for name in INDICES if (folder / name).exists()):
        told = read_json(folder / name, "an index of shards", "Save the model again.")
        shards = told.get("weight_map") if isinstance(told, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(each, str) for each in shards.values()):
            raise StoreError(f"{folder / name} without a weight_map", "an index of shards", "Save the model again.")
        return [folder / shard for shard in sorted({Path(each).name for each in shards.values()})]
    for name in (name for name in WHOLE if (folder / name).exists()):
        return [folder / name]
    raise StoreError(f"{folder} without a model", "one of " + ", ".join((*INDICES, *WHOLE)), "Give the file itself.")


def _stamp(file: BufferedReader) -> tuple[int, int]:
    told = os.fstat(file.fileno())
    return told.st_size, told.st_mtime_ns


__all__ = ["Entry", "entries", "files_of"]
