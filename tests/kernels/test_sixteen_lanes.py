"""Kernels for AVX-512 on CPUs that have AVX2 alone: what they compute, by the tests that hold for every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pollard.kernels.code.target import host_isas

TESTS = Path(__file__).parents[1]
PRODUCTS = (
    "test_parity.py",
    "test_half_precision.py",
    "test_same_bits.py",
    "test_blocks.py",
    "test_activations.py",
    "test_pairs.py",
    "test_skinny.py",
    "test_bitmap.py",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("avx512" in host_isas(), reason="this CPU has AVX-512: the tests themselves run its kernels"),
    pytest.mark.skipif("avx2" not in host_isas(), reason="no AVX2 to run 16 lanes on"),
]


def run(*tests):
    # In a process of its own, which takes its CPU for another.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "sixteen_lanes", *map(str, tests)]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout


def test_products_of_16_lanes_equal_their_twins():
    run("--sample=2", *(TESTS / "kernels" / "products" / name for name in PRODUCTS))


def test_convolutions_of_16_lanes_equal_their_twins():
    run("--sample=2", "--hypothesis-profile=few", TESTS / "kernels" / "convolutions")


def test_index_work_of_16_lanes_equals_its_twin():
    run("--sample=1", *sorted((TESTS / "kernels" / "indices").glob("test_*.py")))


def test_streams_of_16_lanes_equal_their_twins():
    run("--hypothesis-profile=few", TESTS / "streams" / "test_philox.py", TESTS / "streams" / "test_stream.py")
