"""Scripts of benchmarks/ run in processes of their own, whose memory is theirs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ONLY_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and limits the address space as Linux does"
)


def told_by(script: str, *options: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a script of benchmarks/ prints as JSON, with these environment variables too."""
    told: dict[str, Any] = _told([str(BENCHMARKS / script), *options], variables)
    return told


def told_by_lines(lines: str) -> Any:
    """What lines of Python print as JSON."""
    return _told(["-c", lines])


def _told(words: list[str], variables: Mapping[str, str] | None = None) -> Any:
    # Coverage's own tracing would count as the network's memory.
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    result = subprocess.run(
        [sys.executable, *words], env={**quiet, **(variables or {})}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
