"""With nothing asked for, choices are measured: in a process of its own, with an environment that says nothing of tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pollard.kernels.code.target import host_isas

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")]

# A layer of 100 thousand weights, and batches of it whose products take 5.0 and 3.9 million multiply-adds.
PROGRAM = """
import json
import torch
from pollard.kernels.products import dispatch, tuning
from pollard.formats.topology import Topology
torch.set_num_threads(1)
topology = Topology.random((1000, 1000), 0.1)
values = torch.randn(topology.nnz)
for batch in (50, 39):
    x, dy = torch.randn(batch, 1000), torch.randn(batch, 1000)
    dispatch.forward(x, values, topology)
    dispatch.input_grad(dy, values, topology)
    dispatch.value_grad(dy, x, topology)
said = {key: [each.reason, [us for _, us in each.candidates]] for key, each in tuning._decisions.items()}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Runs PROGRAM as it would for somebody who has set nothing; their home, and what they are told of each decision."""
    home = tmp_path_factory.mktemp("home")
    said = {name: text for name, text in os.environ.items() if not name.startswith(("POLLARD_", "XDG_"))}

    def run():
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env={**said, "HOME": str(home)}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return home, run(), run()


def test_large_products_are_measured_and_small_ones_are_not(untouched):
    _, first, _ = untouched
    assert sorted(key.split()[0] for key in first) == sorted(2 * ["gather", "scatter", "sddmm"])
    measured = {key: times for key, (reason, times) in first.items() if "measured on this machine" in reason}
    assert {key.split()[0] for key in measured} >= {"gather", "scatter"}
    for times in measured.values():
        assert len(times) > 1
        assert 0.0 < times[0] == min(times)
    assert sum("too few" in reason for reason, _ in first.values()) == 3


def test_what_was_measured_is_not_measured_again_in_the_next_process(untouched):
    home, first, second = untouched
    measured = {key for key, (_, times) in first.items() if times}
    (memory,) = home.glob(".cache/pollard/tuning-*.json")
    assert set(json.loads(memory.read_text())) == measured
    assert {key for key, (reason, _) in second.items() if reason.endswith("remembered")} == measured
