"""Metrics as JSON lines: appended, synced, and cut back to the checkpoint when a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pollard.errors import StoreError
from pollard.reading import fits, parse_json, read_bytes

Number = int | float


class MetricsLog:
    """A file of one JSON object a line that never shows a half or a doubled line to a run that resumes.

    A checkpoint stores `size` after its last line; opened with that `size`, what a killed run wrote later goes.
    Raises StoreError when the file cannot be written or is shorter than `size`.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _unwritable(path, str(error)) from error
        found = self._file.tell()
        if found < size:
            self._file.close()
            raise StoreError(
                f"{path} with {found} bytes",
                f"at least the {size} bytes that the checkpoint beside it counts",
                "Restore the file, or remove the whole run folder to start again.",
            )
        if found > size:
            self._file.truncate(size)
        self.path, self.size = path, size

    def write(self, record: Mapping[str, Number]) -> None:
        """Append `record` as one line, on disk when this returns."""
        line = json.dumps(record).encode() + b"\n"
        try:
            written = self._file.write(line)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, str(error)) from error
        if written != len(line):
            raise _unwritable(self.path, f"{written} of {len(line)} bytes written")
        self.size += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Number]]:
    """The records of a metrics file, oldest first; a last line that a kill cut short is left out.

    Raises StoreError for a file that is missing or damaged.
    """
    lines = read_bytes(path, *_EXPECTED).split(b"\n")[:-1]
    records = [parse_json(line, f"{path}, line {number}", *_EXPECTED) for number, line in enumerate(lines, start=1)]
    for number, record in enumerate(records, start=1):
        if not fits(record, dict[str, int | float]):
            raise _lacking(path, number, "a table of numbers")
    return records


def column(records: Sequence[Mapping[str, Number]], name: str, path: Path) -> list[Number]:
    """The figure `name` of each record of the file at `path`; raises StoreError where one lacks it, or there is none."""
    lacking = [number for number, record in enumerate(records, start=1) if name not in record]
    if lacking or not records:
        raise _lacking(path, lacking[0] if lacking else 1, name)
    return [record[name] for record in records]


_EXPECTED = "the metrics of a run", "Remove its folder, and run it again."


def _lacking(path: Path, number: int, what: str) -> StoreError:
    expected, fix = _EXPECTED
    return StoreError(f"{path}, line {number}, without {what}", expected, fix)


def _unwritable(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path}: {reason}", "a file that can be written", "Free some space, or give another output folder."
    )
