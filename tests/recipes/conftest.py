"""A data set of a few pixels, so that a run takes a moment, and a study of such runs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from pollard.recipes.study import Study


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder of IDX files: 60 + 20 images of 4 x 4, brighter in the half that the label names."""
    folder = tmp_path_factory.mktemp("tiny")
    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 60), ("t10k", 20)):
        labels = torch.randint(0, 2, (count,), dtype=torch.uint8, generator=draw)
        images = torch.randint(0, 90, (count, 4, 4), dtype=torch.uint8, generator=draw)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 * label : 2 * label + 2] += 100
        for kind, tensor in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + tensor.numpy().tobytes())
    return folder


STUDY = """
title = "Halves"

[recipe]
data = "{data}"
model = "mlp-16-32-2"
batch_size = 8
epochs = 2

[grid]
density = [0.5, 0.25]
seed = [0, 1]

[[series]]
label = "dense"
method = "dense"

[[series]]
label = "SNIP"

[[series]]
label = "after training"
method = "magnitude"
score_at = 2

[[published]]
label = "SNIP"
density = 0.5
test_accuracy = 0.9
source = "a paper"
"""


@pytest.fixture
def file(tiny_data, tmp_path):
    path = tmp_path / "halves.toml"
    path.write_text(STUDY.format(data=tiny_data))
    return path


@pytest.fixture
def study(file):
    return Study.read(file)
