"""Other devices than the CPU, of which machines without one pretend to have one."""

import os
import subprocess
import sys
from pathlib import Path

TRIALS = Path(__file__).with_name("device_trials.py")


def test_all_is_there_as_on_the_cpu():
    # In a process of its own: torch takes the pretended device for an accelerator, and others would use it.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TRIALS)]
    env = {**os.environ, "POLLARD_PRETENDS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " skipped" not in run.stdout
