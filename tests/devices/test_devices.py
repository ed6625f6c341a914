"""Other devices than the CPU: CUDA where it is, and one that every machine can pretend to have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRIALS = sorted(map(str, Path(__file__).parent.glob("*_trials.py")))
PLACES = ["pretended", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trials", TRIALS, ids=lambda path: Path(path).stem)
def test_all_is_there_as_on_the_cpu(trials, place):
    # In a process of its own: torch takes the pretended device for an accelerator, and others would use it.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", trials]
    env = {**os.environ, "POLLARD_TRIALS": place}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
