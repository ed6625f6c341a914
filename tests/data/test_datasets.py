"""Data sets come standardised by their training pixels, whole, and split as said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pollard import data
from pollard.errors import DataError


def test_digits_are_split_once_and_for_all() -> None:
    digits = data.load("digits")
    assert (digits.name, digits.features, digits.classes) == ("digits", 64, 10)
    assert digits.train_x.dtype == digits.test_x.dtype == torch.float32
    assert digits.train_y.dtype == digits.test_y.dtype == torch.int64
    # The permutation of seed 0: another split would make figures incomparable.
    assert digits.train_y[:8].tolist() == [6, 5, 5, 7, 9, 9, 8, 4]
    assert digits.train_y.bincount().sum() + digits.test_y.bincount().sum() == 1797


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files_is_a_data_set(tmp_path: Path, packed: bool, write_idx_folder) -> None:
    folder = tmp_path / "mine"
    write_idx_folder(folder, packed=packed)
    loaded = data.load(str(folder))
    assert (loaded.name, loaded.classes) == ("mine", 3)
    assert loaded.train_x.shape == (6, 6)
    assert loaded.test_x.shape == (4, 6)
    assert loaded.train_y.tolist() == [0, 1, 2, 0, 1, 2]


def test_training_pixels_have_mean_0_and_deviation_1_and_test_pixels_share_the_scale(
    tmp_path: Path, idx_bytes, write_idx_folder
) -> None:
    write_idx_folder(tmp_path)
    test_images = torch.full((4, 2, 3), 255, dtype=torch.uint8)
    train_images = torch.zeros(6, 2, 3, dtype=torch.uint8)
    train_images[:3] = 200
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(train_images))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(test_images))
    loaded = data.load(tmp_path)
    assert loaded.train_x.unique().tolist() == [-1.0, 1.0]
    assert loaded.test_x.unique().tolist() == pytest.approx([1.55])


def test_constant_pixels_do_not_divide_by_zero(tmp_path: Path, idx_bytes, write_idx_folder) -> None:
    write_idx_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(torch.full((6, 2, 3), 7, dtype=torch.uint8)))
    assert data.load(tmp_path).train_x.unique().tolist() == [0.0]


@pytest.mark.parametrize("name", ["mnits", "cifar10", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(DataError, match="digits, mnist, fashion-mnist"):
        data.load(name)


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path: Path, write_idx_folder) -> None:
    with pytest.raises(DataError, match="no folder at"):
        data.load(tmp_path / "nowhere")
    write_idx_folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte"):
        data.load(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, idx_bytes, write_idx_folder) -> None:
    write_idx_folder(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    kept = labels.read_bytes()
    labels.write_bytes(idx_bytes(torch.zeros(5, dtype=torch.uint8)))
    with pytest.raises(DataError, match="one label for each image"):
        data.load(tmp_path)
    labels.write_bytes(kept)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(torch.zeros(4, 2, 2, dtype=torch.uint8)))
    with pytest.raises(DataError, match="images of one size"):
        data.load(tmp_path)
