"""What every test and doctest stands on: a cache of its own, one thread, and examples that are the same on every run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from covering import sampled
from pollard.settings import Settings

# Fetched data is shared with the person who runs the tests: where it lies is settled before the cache is moved.
os.environ["POLLARD_DATA"] = str(Settings.read().data)
# The workers of a run inherit the cache of the process that started them: what one compiles, the other need not.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="pollard-tests-")
    os.environ["POLLARD_CACHE"] = _cache.name

# Torch takes what some of these pretend for an accelerator: they run in a process of their own, which says on what.
collect_ignore = ["tests/pretended.py", "tests/tried.py"]
collect_ignore_glob = [] if "POLLARD_TRIALS" in os.environ else ["tests/devices/*_trials.py"]

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", derandomize=False, deadline=None, max_examples=6000)
hypothesis.settings.register_profile("few", derandomize=True, deadline=None, max_examples=24)
hypothesis.settings.load_profile("ci")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a large matrix only as many cases as cover each pair of values, but for `--hypothesis-profile=thorough`."""
    if hypothesis.settings.get_current_profile_name() != "thorough":
        kept, left_out = sampled(items)
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _cache.cleanup()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two workers share the cores; a test of threads sets its own number, and the next test starts from one again."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test or a doctest writes lands in the repository."""
    monkeypatch.chdir(tmp_path)
