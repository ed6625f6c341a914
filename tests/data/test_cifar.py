"""CIFAR-10 is decoded once, and is the data set that papers speak of."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pollard import data
from pollard.data import cifar, sources
from pollard.data.archive import file_sha256
from pollard.data.idx import read_idx
from pollard.data.sources import SOURCES
from pollard.errors import DataError

ROWS = 3
# Of the images as arrays (examples, channels, height, width), training and test.
DIGESTS = {
    "train": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    "t10k": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
}


def draw_pictures(folder):
    """Eight files as the package has them, of three images each; what they hold, by name of the part."""
    draw = np.random.default_rng(0)
    held = {}
    for part, pictures in (("train", cifar.TRAIN_PICTURES), ("test", cifar.TEST_PICTURES)):
        images = draw.integers(0, 256, (len(pictures), ROWS, 32, 32, 3), dtype=np.uint8)
        for name, image in zip(pictures, images, strict=True):
            Image.fromarray(image.reshape(ROWS, 1024, 3)).save(folder / name)
        labels = draw.integers(0, 10, len(pictures) * ROWS).tolist()
        (folder / f"{part}_lables.json").write_text(json.dumps(labels))
        held[part] = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2), labels
    return held


@pytest.fixture
def packed(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    return folder, draw_pictures(folder)


def test_a_row_of_a_picture_is_an_image_of_three_channels(tmp_path, packed):
    folder, held = packed
    cifar.decode(folder, tmp_path)
    loaded = data.load(tmp_path)
    assert (loaded.shape, loaded.classes) == ((3, 32, 32), 1 + max(held["train"][1] + held["test"][1]))
    for part, x, y in (("train", loaded.train_x, loaded.train_y), ("test", loaded.test_x, loaded.test_y)):
        pixels, labels = held[part]
        assert y.tolist() == labels
        # Each channel by the mean and deviation of its own training pixels.
        train = held["train"][0].double()
        mean, deviation = train.mean((0, 2, 3)), train.std((0, 2, 3), correction=0)
        expected = (pixels.double() - mean[:, None, None]) / deviation[:, None, None]
        torch.testing.assert_close(x.unflatten(1, loaded.shape).double(), expected, rtol=1e-5, atol=1e-5)


def test_it_is_fetched_once_decoded_once_and_checked(tmp_path, packed, monkeypatch):
    folder, _ = packed
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    cifar.decode(folder, decoded)
    archive = tmp_path / "tiny.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "package")
    tiny = replace(
        SOURCES["cifar-10"],
        client=("cp", str(archive), "."),
        archive="tiny.tgz",
        sha256=file_sha256(archive),
        size=archive.stat().st_size,
        digests={path.name: file_sha256(path) for path in decoded.iterdir()},
    )
    monkeypatch.setenv("POLLARD_DATA", str(tmp_path / "cache"))
    # What decodes to something else than is pinned is not kept.
    monkeypatch.setitem(sources.SOURCES, "cifar-10", replace(tiny, digests=dict.fromkeys(tiny.digests, "0")))
    with pytest.raises(DataError, match="sha256"):
        data.load("cifar-10")
    assert not (tmp_path / "cache" / "cifar-10").exists()

    monkeypatch.setitem(sources.SOURCES, "cifar-10", tiny)
    assert data.load("cifar-10").train_x.shape == (5 * ROWS, 3072)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"cifar-10", ".cifar-10.lock"}
    assert {path.name for path in (tmp_path / "cache" / "cifar-10").iterdir()} == set(tiny.digests)
    monkeypatch.setattr(cifar, "read_picture", None)  # the second time, nothing is decoded
    archive.unlink()
    assert data.load("cifar-10").test_x.shape == (ROWS, 3072)


@pytest.mark.parametrize("damage", ["picture", "width", "labels", "missing"])
def test_a_damaged_file_is_told(tmp_path, packed, damage):
    folder, _ = packed
    if damage == "picture":
        (folder / "data_batch_3.png").write_bytes((folder / "data_batch_3.png").read_bytes()[:100])
    elif damage == "width":
        Image.new("RGB", (1000, 2)).save(folder / "test_batch.png")
    elif damage == "labels":
        (folder / "train_lables.json").write_text('["cat"]')
    else:
        (folder / "data_batch_1.png").unlink()
    with pytest.raises(DataError, match="Fetch the data set again"):
        cifar.decode(folder, tmp_path)


@pytest.fixture(scope="module")
def cifar_10():
    try:
        return data.load("cifar-10")
    except DataError as gone:
        pytest.skip(f"CIFAR-10 cannot be had here: {gone}")


@pytest.mark.slow
def test_it_is_the_data_set_of_the_papers(cifar_10):
    folder = data.fetch("cifar-10")
    assert {path.name: file_sha256(path) for path in folder.iterdir()} == SOURCES["cifar-10"].digests
    assert (cifar_10.train_x.shape, cifar_10.test_x.shape, cifar_10.shape) == (
        (50_000, 3072),
        (10_000, 3072),
        (3, 32, 32),
    )
    assert cifar_10.train_y[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar_10.test_y[:5].tolist() == [3, 8, 8, 0, 6]
    assert cifar_10.train_y.bincount().tolist() == [5000] * 10
    assert cifar_10.test_y.bincount().tolist() == [1000] * 10
    read = {part: read_idx(folder / f"{part}-images-idx4-ubyte") for part in ("train", "t10k")}
    means = read["train"].double().mean((0, 2, 3)) / 255
    deviations = read["train"].double().std((0, 2, 3), correction=0) / 255
    assert means.tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-8)
    assert deviations.tolist() == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=1e-8)
    assert {part: hashlib.sha256(images.numpy().tobytes()).hexdigest() for part, images in read.items()} == DIGESTS
