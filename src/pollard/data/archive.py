"""Single files out of downloaded archives, under names of our choosing: an archive's own paths are never written to."""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pollard.errors import DataError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60
FETCH_AGAIN = "Delete it and fetch again."
CHUNK = 1 << 20
LARGEST = 1 << 33
# What tarfile and the decompressors below it raise on damage; they do not agree on one error.
UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, IndexError, struct.error, zlib.error, lzma.LZMAError)


def file_sha256(path: Path) -> str:
    """The sha256 of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, members: Mapping[str, Path]) -> None:
    """Write each member of a tar or Debian package `archive` to the path it maps to.

    The archive is read to its end, where the checksums of compressed ones lie. Raises DataError when it cannot be read or
    is damaged, or a member is missing or not a plain file; what was written may then be anything.
    """
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_tar_stream(archive, file)) as tar:
            for member, target in members.items():
                _extract(tar, member, target)
            _read_to_the_end(tar)
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{archive}: {error.args[0]}", "the files " + ", ".join(members), FETCH_AGAIN) from error
    except UNREADABLE as error:
        raise DataError(f"{archive}: {error}", "a complete archive", FETCH_AGAIN) from error


def _extract(tar: tarfile.TarFile, member: str, target: Path) -> None:
    entry = tar.getmember(member)
    content = tar.extractfile(entry) if entry.isreg() else None
    if content is None or entry.size > LARGEST:
        raise DataError(f"{member} that is no plain file of a data set", "a plain file", FETCH_AGAIN)
    with content, target.open("wb") as out:
        shutil.copyfileobj(content, out)


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    assert tar.fileobj is not None
    while tar.fileobj.read(CHUNK):
        pass


def _tar_stream(archive: Path, file: BinaryIO) -> BinaryIO:
    is_deb = file.read(len(AR_MAGIC)) == AR_MAGIC
    if is_deb:
        return _deb_payload(archive, file)
    file.seek(0)
    return file


def _deb_payload(archive: Path, file: BinaryIO) -> BinaryIO:
    # A .deb is an ar archive: 60-byte headers (name 16, ..., size at 48:58), bodies padded to an even length.
    while len(header := file.read(AR_HEADER)) == AR_HEADER:
        name, digits = header[:16].rstrip(b" /"), header[48:58].strip()
        if not digits.isdigit():
            break
        size = int(digits)
        if name.startswith(b"data.tar"):
            return io.BytesIO(file.read(min(size, archive.stat().st_size)))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise DataError(f"{archive} without data.tar", "a complete Debian package", FETCH_AGAIN)
