"""Tensors that are written a piece at a time, and tensors in files of which a part is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pollard.errors import InvalidInput, StoreError
from pollard.formats.entries import entries, files_of
from pollard.formats.store import Pieces, load_tensors, save_pieces, save_tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]


def made(shape, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, shape, generator=draw).to(dtype)


@given(
    kinds=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        max_size=5,
    ),
    step=st.integers(1, 7),
)
def test_pieces_make_the_file_that_whole_tensors_make(kinds, step):
    whole = {name: made(tuple(shape), dtype, seed) for seed, (name, (shape, dtype)) in enumerate(kinds.items())}
    wrote = []
    save_pieces(
        "pieces.safetensors",
        {
            name: Pieces(each.dtype, tuple(each.shape), lambda each=each: each.flatten().split(step))
            for name, each in whole.items()
        },
        {"epoch": 3},
        wrote=wrote.append,
    )
    tensors, metadata = load_tensors("pieces.safetensors")
    assert metadata == {"epoch": 3}
    theirs = load_file("pieces.safetensors")
    assert tensors.keys() == whole.keys() == theirs.keys()
    for name, each in whole.items():
        for found in (tensors[name], theirs[name], entries("pieces.safetensors")[name].whole()):
            assert found.dtype == each.dtype
            assert torch.equal(found, each)
    assert sum(wrote) == sum(each.nbytes for each in whole.values())


def test_a_flipped_bit_of_what_was_written_in_pieces_is_refused():
    save_pieces("w.safetensors", {"w": Pieces(torch.float32, (4,), lambda: torch.ones(4).split(2))}, {})
    content = bytearray(Path("w.safetensors").read_bytes())
    content[-3] ^= 4
    Path("w.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="digest"):
        load_tensors("w.safetensors")


def test_metadata_that_are_no_json_are_refused():
    with pytest.raises(InvalidInput, match="metadata"):
        save_pieces("w.safetensors", {}, {"model": object()})
    assert not list(Path().iterdir())


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=3), data=st.data())
def test_any_part_of_a_tensor_is_read(shape, data):
    whole = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    save_tensors("w.safetensors", {"a": torch.ones(3), "w": whole, "z": torch.ones(5)}, {})
    first = data.draw(st.integers(0, whole.numel()))
    last = data.draw(st.integers(first, whole.numel()))
    assert torch.equal(entries("w.safetensors")["w"].read(first, last), whole.flatten()[first:last])
    assert torch.equal(torch.cat(list(entries("w.safetensors")["w"].pieces())), whole.flatten())


@pytest.mark.parametrize("content", [b"", b"noise", b"\x08" + bytes(7) + b"notjson!"])
def test_what_is_no_safetensors_file_is_refused(content):
    Path("w.safetensors").write_bytes(content)
    with pytest.raises(StoreError):
        entries("w.safetensors")


def test_bools_that_are_neither_are_refused():
    save_tensors("w.safetensors", {"w": torch.ones(3, dtype=torch.bool)}, {})
    content = bytearray(Path("w.safetensors").read_bytes())
    content[-1] = 7
    Path("w.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="bools"):
        entries("w.safetensors")["w"].whole()


def test_a_folder_without_a_model_is_refused():
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        files_of(Path())
