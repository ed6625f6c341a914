"""A metrics file shows each line once, whole, whatever was killed when."""

from __future__ import annotations

from pathlib import Path

import pytest

from pollard.errors import StoreError
from pollard.training import MetricsLog, read_metrics


def test_what_was_written_after_the_checkpoint_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"epoch": 1})
        size = log.size
        log.write({"epoch": 2})
    path.write_bytes(path.read_bytes() + b'{"epoch": 3, "lo')
    assert [line["epoch"] for line in read_metrics(path)] == [1, 2]
    with MetricsLog(path, size) as log:
        log.write({"epoch": 2})
    assert [line["epoch"] for line in read_metrics(path)] == [1, 2]
    assert path.stat().st_size == log.size


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("left over\n")
    with MetricsLog(path):
        assert path.read_bytes() == b""


def test_a_file_shorter_than_the_checkpoint_says_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(StoreError, match="at least the 99 bytes"):
        MetricsLog(path, 99)
    assert path.read_text() == "{}\n"


def test_a_folder_that_does_not_exist_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="nowhere"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl")


def test_a_full_disk_is_a_store_error():
    with MetricsLog(Path("/dev/full")) as log, pytest.raises(StoreError):
        log.write({"epoch": 1})
