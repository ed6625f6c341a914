"""Numbers in the README and in docs/ are those of records and results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_pages_say_what_records_and_results_say():
    script = Path(__file__).parents[1] / "scripts" / "figures.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0, f"run {script.name}"
