"""What outlives a process, compiled kernels and measured choices, where nobody but this user can write.

Machine code runs on the strength of where it was found: a digest tells damage, not a forgery. So a folder that belongs to
another user, or that others may write to, is neither read nor written; what would be there is made anew, in memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from pollard.errors import CacheNotTrusted
from pollard.kernels.code.once import warn_once
from pollard.settings import Settings, make_folder


def folder(name: str = "") -> Path | None:
    """The folder `name` in the cache, made if need be; None where there can be none, or, after one warning, none to trust.

    Both it and the cache must be this user's own, and writable by nobody else. Of a link, the folder that it leads to counts.
    """
    cache = Settings.read().cache
    inside = cache / name
    try:
        make_folder(inside)
        own = all(_trusted(each, each.stat()) for each in dict.fromkeys((cache, inside)))
    except OSError:
        return None
    return inside if own else None


def read(path: Path, most: int) -> bytes | None:
    """The content of the file at `path`, in a folder that `folder` gave; None where it is not there, not this user's own, or
    of more than `most` bytes.
    """
    try:
        with path.open("rb") as file:
            # Asked of the file that is open: it stays the same one, whatever happens to its name.
            status = os.fstat(file.fileno())
            return file.read() if status.st_size <= most and _trusted(path, status) else None
    except OSError:
        return None


def write(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all. A cache that cannot be written costs time, nothing else."""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def _trusted(path: Path, status: os.stat_result) -> bool:
    if status.st_uid != os.geteuid():
        found = f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        found = f"may be written to by others (mode {stat.S_IMODE(status.st_mode):o})"
    else:
        return True
    # One line, however many files there are.
    what = path if stat.S_ISDIR(status.st_mode) else f"a file in {path.parent}"
    cache = Settings.read().cache
    warn_once(
        f"{what} {found}: it is not believed, and each process makes its kernels anew. If it is yours, run "
        f"`chmod 700 {cache}` and remove {cache / 'kernels'}; or set POLLARD_CACHE to a folder of your own.",
        CacheNotTrusted,
    )
    return False
