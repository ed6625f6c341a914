"""Torch's default dtype and device are the user's: they change no index, no sample, no score and no update of ours."""

import contextlib

import numpy as np
import pytest
import torch

from pollard.formats.topology import Topology
from pollard.kernels.indices.candidates import candidates
from pollard.kernels.indices.choosing import choose
from pollard.kernels.indices.moving import move_values
from pollard.kernels.indices.rewire import rewire, sample_grown
from pollard.kernels.indices.scanning import reaching, within
from pollard.nn import initialise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def default(chosen):
    if isinstance(chosen, torch.device):
        with chosen:
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = [torch.float64, torch.bfloat16, torch.float16, torch.device("meta")]


def index_work(pattern):
    here = Topology.random((256, 512), 0.1, pattern, seeded())
    stays = torch.rand(here.grains, generator=seeded(1), dtype=torch.float32, device="cpu") < 0.7
    grown = sample_grown(here, 500, seeded(2), stays=stays)
    there, source = rewire(here, stays, grown)
    rows = torch.ones(here.groups, dtype=torch.float32, device="cpu")
    drawn = candidates(here, 900, rows, torch.ones(512, dtype=torch.float32, device="cpu"), seeded(3))
    scores = torch.randn(here.groups, 512, generator=seeded(4), dtype=torch.float32, device="cpu")
    old = torch.randn(here.nnz, generator=seeded(5), dtype=torch.float32, device="cpu")
    ranked = scores.reshape(-1).numpy().copy().repeat(16)
    return [
        there.positions(), source, drawn.positions(), move_values(old, source, 0.0, size=here.pattern.size),
        *choose(here, stays, 0, scores, 0.5), torch.from_numpy(within(ranked, 0.1, 0.2).inside),
        torch.from_numpy(np.array(reaching(ranked, 0.3, strictly=True))),
    ]  # fmt: skip


def initial_values(pattern):
    topology = Topology.random((64, 96), 0.2, pattern, seeded())
    made = ("uniform", "uniform_bias", "kaiming_normal", "xavier_normal", "lecun_normal")
    return [getattr(initialise, name)(topology, seeded(1)) for name in made]


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("work", [index_work, initial_values])
@pytest.mark.parametrize("chosen", DEFAULTS, ids=str)
@pytest.mark.parametrize("target", ["auto", "reference"])
def test_a_default_changes_nothing(chosen, work, pattern, target, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", target)
    usual = work(pattern)
    with default(chosen):
        made = work(pattern)
    for ours, right in zip(made, usual, strict=True):
        assert ours.dtype == right.dtype
        assert torch.equal(ours, right)
