"""Machine code from a folder that somebody else could have written to is not run."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from pollard.errors import CacheNotTrusted
from pollard.formats.topology import Topology
from pollard.kernels.code import disk, jit, once
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import host_isas
from pollard.kernels.products import dispatch, tuning

needs_kernels = pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    made = tmp_path / "above" / "cache"
    monkeypatch.setenv("POLLARD_CACHE", str(made))
    monkeypatch.setattr(once, "_told", set())
    monkeypatch.setattr(jit, "_loaded", {})
    return made


def mode(path):
    return path.stat().st_mode & 0o777


def spec():
    return KernelSpec("pack", host_isas()[0], vectors=3, packed=False)


@needs_kernels
def test_what_is_kept_is_for_this_user_only(cache):
    before = os.umask(0)
    try:
        jit.load(spec())
    finally:
        os.umask(before)
    (file,) = (cache / "kernels").iterdir()
    assert [mode(path) for path in (cache.parent, cache, cache / "kernels", file)] == [0o700, 0o700, 0o700, 0o600]


def opened(cache):
    cache.chmod(0o777)
    return cache


def opened_within(cache):
    (cache / "kernels").chmod(0o770)
    return cache / "kernels"


def opened_file(cache):
    (file,) = (cache / "kernels").iterdir()
    file.chmod(0o666)
    return cache / "kernels"


@needs_kernels
@pytest.mark.parametrize("weaken", [opened, opened_within, opened_file])
def test_code_that_others_could_have_written_is_compiled_anew_after_one_line(cache, monkeypatch, weaken):
    jit.load(spec())
    where = weaken(cache)
    compiled = []
    compile_ = jit._compile
    monkeypatch.setattr(jit, "_compile", lambda spec: compiled.append(spec) or compile_(spec))
    monkeypatch.setattr(jit, "_loaded", {})
    with pytest.warns(CacheNotTrusted, match="chmod 700.*POLLARD_CACHE") as told:
        jit.load(spec())
    assert str(where) in str(told[0].message)
    # Warnings are errors here: a second line would end the test.
    jit.load(KernelSpec("pack", host_isas()[0], vectors=5, packed=False))
    assert compiled[0] == spec()


def owned_by_another(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@needs_kernels
def test_code_of_another_user_is_not_run_and_nothing_is_written_beside_it(cache, monkeypatch):
    jit.load(spec())
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    owned_by_another(monkeypatch)
    monkeypatch.setattr(tuning, "_read", {})
    monkeypatch.setattr(tuning, "_decisions", {})
    monkeypatch.setattr(tuning, "SMALL", 0)
    monkeypatch.setattr(jit, "_loaded", {})
    with pytest.warns(CacheNotTrusted, match="belongs to user"):
        jit.load(spec())
    # Warnings are errors here: a second line would end the test.
    topology = Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0))
    dispatch.forward(torch.randn(64, 4096), torch.randn(topology.nnz), topology)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_link_counts_as_the_folder_that_it_leads_to(cache, tmp_path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o777)
    cache.parent.mkdir()
    cache.symlink_to(own)
    assert disk.folder() == cache
    cache.unlink()
    cache.symlink_to(shared)
    with pytest.warns(CacheNotTrusted, match="written to by others"):
        assert disk.folder() is None


@pytest.mark.parametrize("broken", ["a file in the way", "a link to nowhere", "a link to itself"])
def test_a_cache_that_cannot_be_is_done_without(cache, broken):
    cache.parent.mkdir()
    if broken == "a file in the way":
        cache.write_text("")
        assert disk.folder("kernels") is None
    else:
        cache.symlink_to(cache if "itself" in broken else cache.parent / "missing" / "deeper")
        assert disk.folder() is None


def test_a_file_is_written_whole_or_left_as_it_was(cache, monkeypatch):
    file = disk.folder() / "file"
    disk.write(file, b"before")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    disk.write(file, b"after")
    assert file.read_bytes() == b"before"
    assert [path.name for path in cache.iterdir()] == ["file"]


def test_a_user_without_a_home_has_a_cache_of_their_own(tmp_path):
    program = (
        "import os, pwd\n"
        "pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))\n"
        "from pollard.kernels.code import disk\n"
        "print(disk.folder())\n"
    )
    clean = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "POLLARD_CACHE")
    }
    clean["TMPDIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(tmp_path / f"pollard-{os.getuid()}")


def test_a_warning_is_said_once_whoever_asks(monkeypatch):
    monkeypatch.setattr(once, "_told", set())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            once.warn_once("a line", CacheNotTrusted)
        once.warn_once("another", CacheNotTrusted)
    assert [str(each.message) for each in told] == ["a line", "another"]
