"""Streams and graphs of a GPU, told of by torch: what is asked of it and when, on machines without one."""

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch

import pollard
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.kernels.products.derived import let_go, made_once
from pollard.kernels.products.waiting import is_captured, wait_for_stream
from pollard.nn import SparseLinear


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True

    def record_stream(self, stream):
        recorded.append((self, stream))


@dataclass
class Arrays:
    one: torch.Tensor
    other: torch.Tensor


recorded = []


@pytest.fixture
def streams(monkeypatch):
    recorded.clear()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    return recorded


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_memory_waits_for_the_current_stream(streams):
    first, second, third = (torch.zeros(size).as_subclass(Elsewhere) for size in (1, 2, 3))
    wait_for_stream([[first, torch.zeros(4)], Arrays(second, torch.zeros(5)), 3, "name", (third,)])
    assert [id(tensor) for tensor, _ in streams] == [id(first), id(second), id(third)]
    assert {stream for _, stream in streams} == {"the stream of cpu"}


def test_what_is_derived_from_a_topology_waits_when_it_is_let_go(streams):
    topology = Topology.random((8, 12), 0.4)
    made = made_once(topology, "arrays", lambda: Arrays(*(torch.zeros(size).as_subclass(Elsewhere) for size in (1, 2))))
    let_go(topology)
    assert [id(tensor) for tensor, _ in streams] == [id(made.one), id(made.other)]


def test_no_graph_is_captured_without_a_gpu():
    assert not is_captured()


def test_index_arrays_are_not_made_in_a_graph(capturing):
    topology = Topology.random((8, 12), 0.4)
    with pytest.raises(InvalidInput, match=r"CUDA graph.*before torch\.cuda\.graph"):
        made_once(topology, "arrays", lambda: 1)


def test_what_was_made_is_there_in_a_graph(monkeypatch):
    topology = Topology.random((8, 12), 0.4)
    made_once(topology, "arrays", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert made_once(topology, "arrays", lambda: 2) == 1


@pytest.mark.parametrize(("method", "every"), [("rigl", {"every": 2}), ("static", {})])
def test_steps_that_move_a_topology_are_not_captured(capturing, method, every):
    model = torch.nn.Sequential(SparseLinear.random(8, 4, 0.5))
    sparse = getattr(pollard, method)(model, torch.optim.SGD(model.parameters(), 0.1), steps=10, **every)
    refused = pytest.raises(InvalidInput, match="a step of rigl captured in a CUDA graph")
    with refused if every else nullcontext():
        sparse.step()
    assert sparse.steps == (0 if every else 1)
