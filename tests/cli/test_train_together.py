"""`torchrun -m pollard train`: several processes, one folder, one answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_torchrun_starts_the_command_and_one_of_them_speaks(tmp_path):
    words = ["--data", "digits", "--method", "snip", "--epochs", "2", "--out", str(tmp_path), "--json"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pollard", "train", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, timeout=100
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["processes"] == 2
    assert told["test_accuracy"] > 0.5
