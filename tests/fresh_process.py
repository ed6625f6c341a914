"""Scripts of benchmarks/ run in processes of their own, whose memory is theirs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ONLY_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc, and limits the address space as Linux does"
)


def told_by(script: str, *options: str) -> dict[str, Any]:
    """What a script prints as JSON; coverage's own tracing would count as the network's memory."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, str(BENCHMARKS / script), *options]
    result = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told
