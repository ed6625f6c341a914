"""Steps by CUDA graphs are the steps themselves, while topologies move between them and other runs go on beside. In a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pollard.training import Examples
from tried import DEVICE, only_cuda, untuned

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import set_cifar
import set_network

pytestmark = [untuned, only_cuda]
EPOCHS, AN_EPOCH = 3, 8


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(set_network, "WIDTHS", (3072, 512, 256, 512, 10))
    monkeypatch.setattr(set_network, "bent_at_once", lambda: set_network.bent)


def images(count):
    draw = torch.Generator().manual_seed(count)
    x, y = torch.randn(count, 3, 32, 32, generator=draw), torch.randint(10, (count,), generator=draw)
    return Examples(x.to(DEVICE), y.to(DEVICE))


def trained(captures):
    """All networks, trained at once, with the graphs that are left."""
    train, test = images(AN_EPOCH * set_network.BATCH), images(100)
    names = [set_cifar.Name(*each) for each in (("set", 0), ("static", 0), ("dense", 1))]
    runs = [set_cifar.Run(name, train, test, EPOCHS) for name in names]
    for run in runs:
        run.take.captures = captures
    while any(run.left for run in runs):
        for run in runs:
            if run.left and not run.waits():
                run.advance(3)
    torch.cuda.synchronize()
    return runs


def test_networks_trained_at_once_by_graphs_are_those_trained_by_steps():
    for by_graphs, by_steps in zip(trained(captures=True), trained(captures=False), strict=True):
        assert len(by_graphs.take.graphs) + len(by_graphs.take.stale) == 1
        assert not by_steps.take.graphs
        for one, other in zip(by_graphs.model, by_steps.model, strict=True):
            assert not hasattr(one, "topology") or one.topology.same_as(other.topology)
        for one, other in zip(by_graphs.model.parameters(), by_steps.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert by_graphs.state()["reached"] == pytest.approx(by_steps.state()["reached"], abs=3.0)
        by_graphs.take.end()
