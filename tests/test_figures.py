"""Numbers in the README are those of the records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_readme_says_what_the_records_say():
    script = Path(__file__).parents[1] / "benchmarks" / "figures.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0, f"run {script.name}"
