"""Bytes are exact, and the peak is this process's own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from pollard.formats.topology import Topology
from pollard.kernels.products.derived import derived_bytes
from pollard.nn.surgery import sparsify_
from pollard.report import measure
from pollard.report.measure import module_bytes, peak_rss_bytes, rss_bytes

MIB = 1 << 20


def two_layers(storage):
    plan = {"0": Topology.random((30, 20), 0.1, generator=torch.Generator().manual_seed(0))}
    return sparsify_(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), plan, storage=storage)


def step(model, optimizer):
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("kind, moments, steps", [(torch.optim.SGD, 1, 0), (torch.optim.Adam, 2, 4)])
def test_every_byte_is_counted_once(storage, kind, moments, steps):
    model = two_layers(storage)
    optimizer = kind(model.parameters(), momentum=0.9) if kind is torch.optim.SGD else kind(model.parameters())
    step(model, optimizer)
    held = module_bytes(model, optimizer)
    values = 4 * 60 if storage == "compressed" else 0
    dense = 4 * (30 + 155) + (0 if storage == "compressed" else 4 * 600)
    assert (held.values, held.dense) == (values, dense)
    assert held.gradients == sum(p.grad.numel() * 4 for p in model.parameters()) == values + dense
    assert held.optimizer == moments * (values + dense) + steps * len(list(model.parameters()))
    assert held.buffers == (600 if storage == "masked" else 0)
    topology = model[0].topology
    assert held.indices == (topology.bytes + derived_bytes(topology) if storage == "compressed" else 0)
    assert held.total == held.values + held.indices + held.dense + held.gradients + held.optimizer + held.buffers


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4, bias=False)
    assert module_bytes(nn.Sequential(layer, nn.ReLU(), layer)).dense == 64


def test_frozen_parameters_have_no_gradient():
    assert module_bytes(nn.Linear(4, 4).requires_grad_(False)).gradients == 0


def test_resident_memory_follows_an_allocation():
    before = rss_bytes()
    block = bytearray(64 * MIB)
    assert 60 * MIB < rss_bytes() - before < 80 * MIB
    assert peak_rss_bytes() >= before + 60 * MIB
    del block
    assert peak_rss_bytes() >= before + 60 * MIB


def test_a_child_does_not_inherit_its_parents_peak():
    def peak_of_a_child():
        child = "from pollard.report.measure import peak_rss_bytes; print(peak_rss_bytes())"
        done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # What importing takes depends on how torch was built: some 300 MB, or with GPU libraries twice that.
    alone = peak_of_a_child()
    block = bytearray(b"x") * (512 * MIB + alone)
    assert peak_rss_bytes() > 512 * MIB + alone
    assert 8 * MIB < peak_of_a_child() < alone + 64 * MIB
    del block


def test_without_proc_the_kernels_own_figure_serves(monkeypatch, tmp_path):
    from_proc = peak_rss_bytes()
    monkeypatch.setattr(measure, "STATUS", tmp_path / "nothing")
    assert abs(peak_rss_bytes() - from_proc) < 64 * MIB
    assert rss_bytes() == peak_rss_bytes()
