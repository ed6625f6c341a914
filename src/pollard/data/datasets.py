"""Data sets in memory: flattened, standardised, split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pollard.data.fetching import obtain
from pollard.data.idx import read_idx
from pollard.data.sources import COLOURED, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, find_source
from pollard.errors import DataError

DIGITS_TEST = 360
DIGITS_SEED = 0
PIECE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Training and test examples: `x` float32 `(examples, features)`, `y` int64 `(examples,)` in `0 .. classes - 1`.

    shape: of one example, `(channels, height, width)` of an image; `x.unflatten(1, shape)` are images.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    shape: tuple[int, ...]

    @property
    def features(self) -> int:
        """Numbers per example."""
        return self.train_x.shape[1]


def load(name: str | Path) -> DataSet:
    """The data set `name`: digits, mnist, fashion-mnist, cifar-10, or the path of a folder with four IDX files, gzipped or not.

    Images are flattened and standardised, `(x - mean) / std`, with the mean and deviation of all training pixels, of each channel
    where there are several.
    digits is split by `torch.randperm` under seed 0: the first 1437 train, the last 360 test. The others keep the split
    they come with. A known name is fetched when it is not here yet. Raises DataError on anything missing or damaged.

    >>> digits = load("digits")
    >>> digits.train_x.shape, digits.test_x.shape, digits.classes, digits.shape
    (torch.Size([1437, 64]), torch.Size([360, 64]), 10, (1, 8, 8))
    """
    if str(name) == "digits":
        return _digits()
    folder = Path(name)
    if name and folder.is_dir():
        return _from_folder(folder.resolve().name, folder)
    if isinstance(name, Path) or "/" in name:
        raise DataError(
            f"no folder at {name}", "a folder that holds four IDX files", f"Check the path; {_files_wanted()}"
        )
    return _from_folder(name, obtain(find_source(name)))


def _files_wanted() -> str:
    return f"the files are {TRAIN_IMAGES}, {TRAIN_LABELS}, {TEST_IMAGES}, {TEST_LABELS}, each with or without .gz, images of several channels idx4."


def _from_folder(name: str, folder: Path) -> DataSet:
    return _data_set(
        name,
        _labelled(folder, TRAIN_IMAGES, TRAIN_LABELS),
        _labelled(folder, TEST_IMAGES, TEST_LABELS),
    )


def _labelled(folder: Path, images: str, labels: str) -> tuple[Tensor, Tensor]:
    x, y = read_idx(_find(folder, images)), read_idx(_find(folder, labels))
    if len(x) != len(y) or y.ndim != 1 or x.ndim < 2 or x.numel() == 0:
        raise DataError(
            f"{images} {tuple(x.shape)} and {labels} {tuple(y.shape)} in {folder}",
            "at least one image, and one label for each image",
            "The two files do not belong together: check where they come from.",
        )
    return x[:, None] if x.ndim == 3 else x, y


def _find(folder: Path, name: str) -> Path:
    for each in (name, COLOURED.get(name, name)):
        for candidate in (folder / each, folder / f"{each}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(f"no {name} in {folder}", "four IDX files", f"Put it there; {_files_wanted()}")


def _digits() -> DataSet:
    from sklearn.datasets import load_digits  # costs a second and a hundred megabytes, needed by this data set alone

    loaded = load_digits()
    pixels = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(loaded.target).to(torch.uint8)
    order = torch.randperm(
        len(pixels), generator=torch.Generator().manual_seed(DIGITS_SEED), dtype=torch.int64, device="cpu"
    )
    train, test = order[:-DIGITS_TEST], order[-DIGITS_TEST:]
    return _data_set("digits", (pixels[train], labels[train]), (pixels[test], labels[test]))


def _data_set(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> DataSet:
    """The data set of pixels `(examples, channels, height, width)`, or `(examples, features)`, and their labels."""
    (train_pixels, train_y), (test_pixels, test_y) = train, test
    if train_pixels.shape[1:] != test_pixels.shape[1:]:
        raise DataError(
            f"training images {_size(train_pixels)} and test images {_size(test_pixels)} of {name}",
            "images of one size",
            "Training and test files come from different data sets: check both.",
        )
    of_channels = [_moments(channel) for channel in _channels(train_pixels)]
    return DataSet(
        name=name,
        train_x=_standardised(train_pixels, of_channels),
        train_y=train_y.to(torch.int64),
        test_x=_standardised(test_pixels, of_channels),
        test_y=test_y.to(torch.int64),
        classes=1 + max(int(train_y.max()), int(test_y.max())),
        shape=tuple(train_pixels.shape[1:]),
    )


def _size(pixels: Tensor) -> str:
    return " x ".join(map(str, pixels.shape[1:]))


def _channels(pixels: Tensor) -> tuple[Tensor, ...]:
    """Views of `pixels`, each of what is standardised by a mean of its own."""
    return pixels.unbind(1) if pixels.ndim == 4 else (pixels,)


def _moments(pixels: Tensor) -> tuple[float, float]:
    # From the histogram of the 256 levels: exact. In pieces, because bincount works on an int64 copy.
    pieces = [torch.bincount(piece.flatten(), minlength=256) for piece in pixels.split(PIECE)]
    count = torch.stack(pieces).sum(0).double()
    level = torch.arange(256, dtype=torch.float64, device="cpu")
    mean = float((count * level).sum() / count.sum())
    variance = float((count * (level - mean) ** 2).sum() / count.sum())
    return mean, variance**0.5 or 1.0


def _standardised(pixels: Tensor, of_channels: Sequence[tuple[float, float]]) -> Tensor:
    x = pixels.to(torch.float32)
    for channel, (mean, deviation) in zip(_channels(x), of_channels, strict=True):
        channel.sub_(mean).div_(deviation)
    return x.flatten(1)
