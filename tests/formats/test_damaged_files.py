"""Files that are altered, cut off or not ours: loading gives valid objects or a StoreError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import StoreError
from pollard.formats.store import load_tensors, load_topologies, save_tensors, save_topologies
from pollard.formats.topology import Topology

FILE = "kept.safetensors"


def tampered(**arrays: torch.Tensor) -> None:
    """A file as saved, with some of its tensors exchanged for others."""
    save_topologies(FILE, {"fc": Topology.full((2, 2))})
    tensors, metadata = load_tensors(FILE)
    save_tensors(FILE, {**tensors, **{f"fc.{name}": array for name, array in arrays.items()}}, metadata)


@pytest.mark.parametrize(
    "columns, message",
    [
        (torch.tensor([0, 1, 0, 2]), "columns from 0 to 2"),
        (torch.tensor([1, 0, 0, 1]), "column 0 after 1"),
        (torch.tensor([0, 1, 0]), "last row pointer"),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), "float32"),
    ],
)
def test_indices_that_are_no_matrix_are_refused(columns, message):
    tampered(columns=columns)
    with pytest.raises(StoreError, match=message):
        load_topologies(FILE)


def test_indices_that_are_another_matrix_are_refused():
    tampered(
        columns=torch.tensor([0, 1, 0], dtype=torch.int32), row_pointers=torch.tensor([0, 2, 3], dtype=torch.int32)
    )
    with pytest.raises(StoreError, match="altered indices in 'fc'"):
        load_topologies(FILE)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"topologies": [], "metadata": {}},
        {"topologies": {"fc": 3}, "metadata": {}},
        {"topologies": {"fc": {"shape": [2, 2], "pattern": "v3"}}, "metadata": {}},
        {"topologies": {"fc": {"shape": [3, 2], "pattern": "unstructured"}}, "metadata": {}},
        {"topologies": {"fc": {"shape": [2, 2], "pattern": "unstructured"}}, "metadata": {}},
        {"topologies": {"other": {"shape": [2, 2], "pattern": "unstructured"}}, "metadata": {}},
        {"topologies": {}, "metadata": 3},
        {"topologies": {"fc": {"shape": [2, 2], "pattern": [1]}}, "metadata": {}},
    ],
)
def test_metadata_that_does_not_fit_is_refused(metadata):
    full = Topology.full((2, 2))
    save_tensors(FILE, {"fc.row_pointers": full.row_pointers, "fc.columns": full.columns}, metadata)
    with pytest.raises(StoreError, match="no valid topologies"):
        load_topologies(FILE)


def saved() -> bytes:
    save_topologies(FILE, {"a": Topology.full((4, 3), "v2"), "b": Topology.random((8, 8), 0.3)}, {"seed": 1})
    return Path(FILE).read_bytes()


def loads_or_refuses(content: bytes) -> bool:
    """Whether `content` is refused with a StoreError; if it loads, all that comes out is sound."""
    Path(FILE).write_bytes(content)
    try:
        topologies, *_ = load_topologies(FILE)
    except StoreError:
        return True
    for topology in topologies.values():
        Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns)
    return False


CHECKED = {
    "values": torch.linspace(-1, 1, 7),
    "moments": torch.full((2, 3), 0.5, dtype=torch.float64),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "noise": torch.arange(9, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "step": torch.tensor(3.0),
    "none": torch.empty(0, 4),
}


def test_one_flipped_bit_anywhere_is_refused():
    save_tensors(FILE, CHECKED, {"loss": 0.25, "rate": [1e-3, None]})
    content = Path(FILE).read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        Path(FILE).write_bytes(damaged)
        try:
            found = load_tensors(FILE)
        except StoreError:
            continue
        # JSON may say the same in other letters, as in \u00FC; data may not.
        assert place < 8 * data
        assert found[1] == {"loss": 0.25, "rate": [1e-3, None]}
        assert all(torch.equal(found[0][name], tensor) for name, tensor in CHECKED.items())


@pytest.mark.parametrize("change", ["dtype", "name", "shape", "metadata", "swapped"])
def test_the_digest_covers_what_the_bytes_mean(change):
    save_tensors(FILE, {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}, {"seed": 1})
    content = Path(FILE).read_bytes()
    exchanged = {
        "dtype": (b'"a":{"dtype":"F32"', b'"a":{"dtype":"I32"'),
        "name": (b'"b":', b'"c":'),
        "shape": (b"[2,3]", b"[3,2]"),
        "metadata": (rb"\"seed\": 1", rb"\"seed\": 2"),
        "swapped": (b'"a":{', b'"A":{'),
    }[change]
    assert exchanged[0] in content
    Path(FILE).write_bytes(content.replace(*exchanged, 1))
    with pytest.raises(StoreError, match="digest"):
        load_tensors(FILE)


def test_files_from_before_there_was_a_digest_still_load():
    text = json.dumps({"version": 1, "metadata": {"epoch": 2}})
    safetensors.torch.save_file({"w": torch.arange(3.0)}, FILE, {"pollard": text})
    tensors, metadata = load_tensors(FILE)
    assert torch.equal(tensors["w"], torch.arange(3.0))
    assert metadata == {"epoch": 2}


def test_a_version_one_with_a_digest_is_held_to_it():
    text = json.dumps({"digest": "0" * 32, "version": 1, "metadata": {}})
    safetensors.torch.save_file({"w": torch.ones(1)}, FILE, {"pollard": text})
    with pytest.raises(StoreError, match="digest"):
        load_tensors(FILE)


@given(st.data())
def test_every_truncated_file_is_refused(data):
    content = saved()
    assert loads_or_refuses(content[: data.draw(st.integers(0, len(content) - 1))])
    assert not loads_or_refuses(content)


@given(st.data())
def test_no_flipped_bit_gets_through_unnoticed(data):
    content = bytearray(saved())
    before = load_topologies(FILE)[0]
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[place // 8] ^= 1 << place % 8
    if not loads_or_refuses(bytes(content)):
        found = load_topologies(FILE)[0]
        same_names = [name for name in found if name in before]
        assert all(found[name].same_as(before[name]) for name in same_names)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_bring_the_loader_down(noise, framed):
    header = len(noise).to_bytes(8, "little") if framed else b""
    assert loads_or_refuses(header + noise)
