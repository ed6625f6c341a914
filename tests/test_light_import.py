"""`import pollard` costs little more than `import torch`: what is heavy loads where it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

HEAVY = {"scipy", "sklearn", "llvmlite", "typer", "rich", "tensorboard", "safetensors"}
ALLOWANCE = 0.080  # seconds of processor time beyond torch

# Processor time, because a busy machine stretches the clock on the wall.
SCRIPT = """
import json, sys, time
import torch
with_torch = set(sys.modules)
start = time.process_time()
import pollard
print(json.dumps({"seconds": time.process_time() - start, "modules": sorted(set(sys.modules) - with_torch)}))
"""


def fresh_import(extra: str = "") -> dict[str, object]:
    """What importing pollard after torch costs a new interpreter, with nothing measuring along."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-c", SCRIPT.replace("import pollard", f"import pollard{extra}")]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def heavy(report: dict[str, object]) -> set[str]:
    return {module.split(".")[0] for module in report["modules"]} & HEAVY


def test_import_is_light_and_quick():
    # The better of two: the first may read files that nobody has read before.
    reports = [fresh_import(), fresh_import()]
    assert [heavy(report) for report in reports] == [set(), set()]
    assert min(report["seconds"] for report in reports) < ALLOWANCE


def test_a_heavy_import_would_be_seen():
    assert heavy(fresh_import(", rich")) == {"rich"}
