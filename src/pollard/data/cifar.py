"""CIFAR-10 out of the pictures that one registry holds it in: a picture of 10,000 rows, each of which is an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pollard.data.idx import write_idx
from pollard.errors import DataError

TRAIN_PICTURES = tuple(f"data_batch_{number}.png" for number in range(1, 6))
TEST_PICTURES = ("test_batch.png",)
TRAIN_LABELS, TEST_LABELS = "train_lables.json", "test_lables.json"  # as they are spelt there
PACKED = (*TRAIN_PICTURES, *TEST_PICTURES, TRAIN_LABELS, TEST_LABELS)
SIDE, CHANNELS = 32, 3


def decode(packed: Path, folder: Path) -> None:
    """Write into `folder` the four IDX files of what the files in `packed` hold.

    Images become `(examples, channels, height, width)`. Raises DataError where a file is damaged.
    """
    for part, pictures, labels in (("train", TRAIN_PICTURES, TRAIN_LABELS), ("t10k", TEST_PICTURES, TEST_LABELS)):
        write_idx(folder / f"{part}-images-idx4-ubyte", torch.cat([read_picture(packed / name) for name in pictures]))
        write_idx(folder / f"{part}-labels-idx1-ubyte", _labels(packed / labels))


def read_picture(path: Path) -> Tensor:
    """The images `(rows, channels, height, width)`, uint8, that the rows of the picture at `path` are.

    Raises DataError where it is damaged or of another width.
    """
    from PIL import Image  # costs a tenth of a second, needed once in a data set's life

    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: {error}", "a picture", "Fetch the data set again.") from error
    if pixels.shape[1] != SIDE * SIDE:
        raise DataError(f"{path}, {pixels.shape[1]} pixels wide", f"{SIDE * SIDE} pixels", "Fetch the data set again.")
    rows = torch.from_numpy(pixels.reshape(-1, SIDE, SIDE, CHANNELS).copy())
    return rows.permute(0, 3, 1, 2)


def _labels(path: Path) -> Tensor:
    try:
        found = json.loads(path.read_text("utf-8"))
        return torch.tensor(found, dtype=torch.uint8, device="cpu")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: {error}", "a list of labels", "Fetch the data set again.") from error
