"""The IDX reader takes exactly what the format allows, and answers everything else with a DataError."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pollard.data.idx import read_idx
from pollard.errors import DataError


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 5), (0, 3)])
@pytest.mark.parametrize("name", ["plain", "packed.gz"])
def test_reads_back_what_was_written(tmp_path: Path, shape: tuple[int, ...], name: str, idx_bytes) -> None:
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.uint8).reshape(shape)
    path = tmp_path / name
    path.write_bytes(gzip.compress(idx_bytes(tensor)) if name.endswith(".gz") else idx_bytes(tensor))
    assert torch.equal(read_idx(path), tensor)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\0\0\x08",
        b"PK\x03\x04" + bytes(20),
        b"\0\0\x0d\x01" + struct.pack(">I", 1) + bytes(4),
        b"\0\0\x08\x00",
        b"\0\0\x08\x03" + struct.pack(">I", 2),
        b"\0\0\x08\x01" + struct.pack(">I", 9) + bytes(8),
        b"\0\0\x08\x01" + struct.pack(">I", 9) + bytes(10),
        b"\0\0\x08\x04" + b"\xff" * 16,
    ],
)
def test_refuses_a_damaged_file(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        read_idx(path)


def test_refuses_a_missing_file_and_a_broken_gzip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing-here"):
        read_idx(tmp_path / "nothing-here")
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(bytes(100))[:-12])
    with pytest.raises(DataError, match=r"broken\.gz"):
        read_idx(broken)


@settings(deadline=None, max_examples=100)
@given(content=st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda tail: b"\0\0\x08" + tail)))
def test_no_content_gives_anything_but_a_tensor_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, idx_bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(content)
    try:
        tensor = read_idx(path)
    except DataError:
        return
    assert idx_bytes(tensor) == content
