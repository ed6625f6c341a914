"""Single files out of downloaded archives, under names of our choosing: an archive's own paths are never written to."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pollard.errors import DataError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60
FETCH_AGAIN = "Delete it and fetch again."


def file_sha256(path: Path) -> str:
    """The sha256 of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, members: Mapping[str, Path]) -> None:
    """Write each member of a tar or Debian package `archive` to the path it maps to.

    Raises DataError when the archive is damaged, or a member is missing or not a plain file.
    """
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=_tar_stream(archive, file)) as tar:
            for member, target in members.items():
                entry = tar.getmember(member)
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is None:
                    raise DataError(f"{member} in {archive} that is no plain file", "a plain file", FETCH_AGAIN)
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out)
    except KeyError as error:
        raise DataError(f"{archive} without {error.args[0]}", "the files " + ", ".join(members), FETCH_AGAIN) from error
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: {error}", "a complete archive", FETCH_AGAIN) from error


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
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise DataError(f"{archive} without data.tar", "a complete Debian package", FETCH_AGAIN)
