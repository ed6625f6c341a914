"""A file is whole or not there, and whatever lies in it, loading gives valid objects or a Pollard error."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, StoreError
from pollard.formats.store import load_tensors, load_topologies, save_tensors, save_topologies, write_atomic
from strategies import topologies

FILE = "kept.safetensors"


@contextmanager
def disk_with(size: int):
    """Writing past `size` bytes of a file fails, as on a full disk: for Python's own writes and for safetensors'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names() -> list[str]:
    """What lies in the test's own folder."""
    return [path.name for path in Path().iterdir()]


def refuse(code: int):
    def call(*_: object, **__: object):
        raise OSError(code, os.strerror(code))

    return call


def test_bytes_and_writers_arrive_whole():
    write_atomic("note", b"first")
    write_atomic("note", lambda beside: beside.write_text("second"))
    assert Path("note").read_bytes() == b"second"
    assert names() == ["note"]


def test_a_file_has_the_permissions_of_any_new_file():
    Path("plain").write_bytes(b"")
    write_atomic("kept", b"")
    assert stat.S_IMODE(Path("kept").stat().st_mode) == stat.S_IMODE(Path("plain").stat().st_mode)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("content", [b"bytes", lambda beside: beside.write_bytes(b"bytes")])
def test_what_is_no_file_is_not_renamed_over(make, content):
    make("kept")
    before = Path("kept").stat().st_mode
    with pytest.raises(StoreError, match="kept, which is no ordinary file"):
        write_atomic("kept", content)
    assert Path("kept").stat().st_mode == before
    assert names() == ["kept"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_the_file_behind_it_is_written(there):
    Path("disk").mkdir()
    Path("kept").symlink_to("disk/file")
    if there:
        Path("disk/file").write_bytes(b"old")
    write_atomic("kept", b"new")
    assert Path("kept").is_symlink()
    assert Path("disk/file").read_bytes() == b"new"
    assert [*Path("disk").iterdir()] == [Path("disk/file")]


def test_file_and_folder_are_synced_around_the_renaming(monkeypatch):
    events = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append(kind(descriptor)), sync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda beside, path: (events.append("rename"), replace(beside, path)))
    write_atomic("kept", b"bytes")
    assert events == ["file", "rename", "folder"]


def kind(descriptor: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


@pytest.mark.parametrize("content", [bytes(10_000), lambda beside: beside.write_bytes(bytes(10_000))])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(content):
    write_atomic("kept", b"old")
    with disk_with(4096), pytest.raises(StoreError, match="kept"):
        write_atomic("kept", content)
    assert Path("kept").read_bytes() == b"old"
    assert names() == ["kept"]


def test_a_disk_that_fills_while_safetensors_writes():
    save_tensors(FILE, {"old": torch.ones(1)}, {})
    with disk_with(4096), pytest.raises(StoreError, match=FILE):
        save_tensors(FILE, {"new": torch.ones(10_000)}, {})
    assert list(load_tensors(FILE)[0]) == ["old"]
    assert names() == [FILE]


@pytest.mark.parametrize("code, advice", [(errno.ENOSPC, "Free some space"), (errno.EDQUOT, "quota")])
@pytest.mark.parametrize("save", [write_atomic, lambda path, _: save_tensors(path, {"new": torch.ones(9)}, {})])
def test_a_failed_sync_leaves_the_old_file_and_nothing_else(monkeypatch, save, code, advice):
    write_atomic("kept", b"old")
    monkeypatch.setattr(os, "fsync", refuse(code))
    with pytest.raises(StoreError, match=advice):
        save("kept", b"new")
    assert Path("kept").read_bytes() == b"old"
    assert names() == ["kept"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_says_so(monkeypatch, code):
    monkeypatch.setattr(Path, "write_bytes", refuse(code))
    with pytest.raises(StoreError, match="folder that may be written to"):
        write_atomic("kept", b"new")


def test_safetensors_own_words_for_a_full_disk_are_understood(monkeypatch):
    def full(*_: object):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StoreError, match="Free some space"):
        save_tensors(FILE, {}, {})


def test_a_missing_folder_and_a_folder_in_the_way():
    with pytest.raises(StoreError, match="Create the folder"):
        write_atomic("missing/kept", b"")
    Path("taken").mkdir()
    with pytest.raises(StoreError, match="taken"):
        write_atomic("taken", b"")
    assert names() == ["taken"]


def test_whatever_a_writer_raises_nothing_is_left():
    def writer(beside: Path):
        beside.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic("kept", writer)
    assert names() == []


def test_two_writers_do_not_share_a_temporary_name():
    beside_names = []

    def outer(beside: Path):
        write_atomic("kept", lambda other: (beside_names.append(other.name), other.write_bytes(b"inner")))
        beside_names.append(beside.name)
        beside.write_bytes(b"outer")

    write_atomic("kept", outer)
    assert len(set(beside_names)) == 2
    assert all(str(os.getpid()) in name for name in beside_names)
    assert Path("kept").read_bytes() == b"outer"


def test_tensors_of_any_kind_come_back_equal():
    shared = torch.arange(12.0).view(3, 4)
    tensors = {
        "whole": shared,
        "again": shared,
        "transposed": shared.t(),
        "row": shared[1],
        "flags": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 4, dtype=torch.int32),
        "learned": torch.nn.Parameter(torch.ones(2)),
    }
    metadata = {"text": "ü\n", "list": [1, None, True], "tree": {"rate": 0.1, "nothing": float("inf")}}
    save_tensors(FILE, tensors, metadata)
    loaded, told = load_tensors(FILE)
    assert told == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_loaded_tensors_own_their_memory():
    save_tensors(FILE, {"a": torch.ones(1000)}, {})
    loaded, _ = load_tensors(FILE)
    os.truncate(FILE, 0)
    loaded["a"].add_(1)
    assert loaded["a"].sum() == 2000


def test_any_reader_of_safetensors_can_read_it():
    save_tensors(FILE, {"a": torch.ones(3)}, {})
    assert torch.equal(safetensors.torch.load_file(FILE)["a"], torch.ones(3))


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.ones(2, device="meta"), [1.0], torch.ones(1, dtype=torch.complex128)]
)
def test_what_the_format_cannot_hold_is_refused(tensor):
    with pytest.raises(InvalidInput, match="tensor"):
        save_tensors(FILE, {"a": tensor}, {})
    assert names() == []


def test_metadata_that_is_no_json_is_refused():
    with pytest.raises(InvalidInput, match="JSON"):
        save_tensors(FILE, {}, {"when": object()})


def test_a_missing_file_and_a_folder_are_refused():
    with pytest.raises(StoreError, match="No such file"):
        load_tensors("missing")
    with pytest.raises(StoreError, match="directory"):
        load_tensors(".")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + bytes(100), bytes(8), b"\xff" * 64, b"{}", b"\x04\0\0\0\0\0\0\0null"]
)
def test_foreign_files_are_refused(content):
    Path(FILE).write_bytes(content)
    for load in (load_tensors, load_topologies):
        with pytest.raises(StoreError, match="of another kind"):
            load(FILE)


@pytest.mark.parametrize("metadata", [None, {}, {"pollard": "[]"}, {"pollard": "["}, {"pollard": "[" * 200_000}])
def test_safetensors_of_others_are_refused(metadata):
    safetensors.torch.save_file({"a": torch.ones(1)}, FILE, metadata)
    with pytest.raises(StoreError, match="no metadata of ours"):
        load_tensors(FILE)


@pytest.mark.parametrize(
    "held, message",
    [
        ({"version": 3, "metadata": {}}, "version 3"),
        ({"version": 1, "metadata": 3}, "ours"),
        ({"version": 2, "metadata": {}}, "digest"),
    ],
)
def test_other_versions_are_refused(held, message):
    safetensors.torch.save_file({"a": torch.ones(1)}, FILE, {"pollard": json.dumps(held)})
    with pytest.raises(StoreError, match=message):
        load_tensors(FILE)


@given(st.dictionaries(st.text(max_size=8), topologies(), max_size=3))
def test_topologies_come_back(layers):
    save_topologies(FILE, layers, {"seed": 3})
    loaded, _, metadata = load_topologies(FILE)
    assert metadata == {"seed": 3}
    assert list(loaded) == list(layers)
    assert all(loaded[name].same_as(topology) for name, topology in layers.items())


def test_negation_and_conjugation_that_wait_are_written_as_numbers():
    waiting = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
    save_tensors(FILE, {"imag": waiting.imag, "whole": waiting}, {})
    loaded, _ = load_tensors(FILE)
    assert loaded["imag"].tolist() == [-2.0, 4.0]
    assert torch.equal(loaded["whole"], waiting)


def test_the_same_content_is_the_same_bytes():
    written = set()
    for _ in range(20):
        save_tensors(FILE, {"b": torch.ones(2), "a": torch.zeros(3)}, {"seed": 1})
        written.add(Path(FILE).read_bytes())
    assert len(written) == 1


def test_reading_holds_every_byte_once():
    size = 64 << 20
    save_tensors(FILE, {"a": torch.ones(size // 8), "b": torch.ones(size // 8)}, {})
    read = "from pollard.formats import load_tensors; from pollard.report.measure import peak_rss_bytes, rss_bytes; "
    read += f"import torch; before = rss_bytes(); load_tensors({FILE!r}); print(peak_rss_bytes() - before)"
    grown = int(subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout)
    assert size <= grown < 1.25 * size


@pytest.mark.parametrize("deep", [99, 2000])
def test_metadata_too_deep_to_be_read_again_is_not_written(deep):
    nested: list[object] = []
    for _ in range(deep):
        nested = [nested]
    with pytest.raises(InvalidInput, match=r"JSON|flatter"):
        save_tensors(FILE, {}, {"a": nested})
    assert names() == []
