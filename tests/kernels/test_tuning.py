"""Choices are measured once, remembered on disk, and a damaged memory is measured again."""

import time

import pytest
import torch

from pollard.formats.topology import Topology
from pollard.kernels import dispatch, tuning
from pollard.kernels.derived import bounds, derived_bytes, tiling, widths
from pollard.kernels.target import current, host_isas
from pollard.kernels.tuning import Choice

pytestmark = pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_decisions", {})
    monkeypatch.setattr(tuning, "SMALL", 0)


def run(topology, batch=64):
    return dispatch.forward(torch.randn(batch, topology.shape[1]), torch.randn(topology.nnz), topology)


def test_the_fastest_candidate_is_taken_and_remembered():
    slow, fast = Choice(1, 0), Choice(2, 0)
    delays = {slow: 0.01, fast: 0.0}
    calls = []

    def work(choice):
        calls.append(choice)
        return lambda: time.sleep(delays[choice])

    first = tuning.decide("a problem", 1, [slow, fast], work)
    assert first.choice == fast
    assert [choice for choice, _ in first.candidates] == [fast, slow]
    tuning._decisions.clear()
    calls.clear()
    again = tuning.known("a problem")
    assert again.choice == fast
    assert again.reason.endswith("remembered")
    assert not calls


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a problem": {"vectors": "x"}}', '{"a problem": 3}'])
def test_a_damaged_memory_is_measured_again(tmp_path, content):
    (tmp_path / f"tuning-v{tuning.VERSION}.json").write_text(content)
    assert tuning.known("a problem") is None
    taken = tuning.decide("a problem", 1, [Choice(1, 0), Choice(2, 0)], lambda choice: lambda: None)
    assert "measured" in taken.reason
    tuning._decisions.clear()
    assert tuning.known("a problem").choice == taken.choice


def test_real_products_are_tuned_and_losing_tiles_are_dropped():
    topology = Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0))
    run(topology)
    (decision,) = tuning._decisions.values()
    assert len(decision.candidates) > 1
    assert len(widths(topology)) == 1


def test_a_transpose_that_lost_is_dropped(monkeypatch):
    topology = Topology.random((512, 256), 0.2, generator=torch.Generator().manual_seed(0))
    before = topology.bytes
    monkeypatch.setattr(tuning, "_race", lambda choices, build: [(c, 1.0) for c in choices if not c.transposed])
    dispatch.input_grad(torch.randn(64, 512), torch.randn(topology.nnz), topology)
    assert topology.bytes == before


def test_a_transpose_that_a_call_uses_is_kept_and_counted_whatever_comes_after_it(monkeypatch):
    monkeypatch.setattr(tuning, "SMALL", 1e9)  # the first candidate is taken: the input gradient gathers the transpose
    topology = Topology.random((512, 256), 0.2, generator=torch.Generator().manual_seed(0))
    alone = topology.bytes + derived_bytes(topology)
    values = torch.randn(topology.nnz)
    dispatch.input_grad(torch.randn(64, 512), values, topology)
    held = topology.bytes + derived_bytes(topology)
    assert held >= alone + 8 * topology.nnz
    dispatch.forward(torch.randn(64, 256), values, topology)
    assert topology.bytes + derived_bytes(topology) >= held


def test_small_problems_are_not_measured(monkeypatch):
    monkeypatch.setattr(tuning, "SMALL", 1e9)
    run(Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0)))
    (decision,) = tuning._decisions.values()
    assert "too few" in decision.reason


def test_tuning_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("POLLARD_TUNING", "default")
    run(Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0)))
    assert not tuning._decisions


@pytest.mark.parametrize("width", [1, 16, 100, 299, 300, 1000])
def test_tiles_cut_each_row_where_columns_pass_their_borders(width):
    topology = Topology.random((37, 300), 0.2, generator=torch.Generator().manual_seed(0))
    tiles = tiling(topology, width)
    mask = topology.mask()
    for tile in range(tiles.tiles):
        begins = tiles.pointers[tile * tiles.stride : tile * tiles.stride + 37]
        ends = tiles.pointers[tile * tiles.stride + tiles.end : tile * tiles.stride + tiles.end + 37]
        assert torch.equal(ends - begins, mask[:, tile * tiles.width : (tile + 1) * tiles.width].sum(1).int())


def test_chunks_hold_about_equal_work_and_cover_all_rows():
    topology = Topology.random((500, 40), 0.3, generator=torch.Generator().manual_seed(0))
    cut = bounds(topology, 4)
    assert cut[0] == 0
    assert cut[-1] == topology.groups
    work = topology.row_pointers[cut.long()].diff()
    assert work.max() - work.min() <= 2 * 40
    assert derived_bytes(topology) >= cut.nbytes


def test_problems_are_told_apart_by_what_matters():
    target = current()
    assert target is not None
    sparse, denser = (Topology.random((64, 64), density) for density in (0.05, 0.5))
    keys = {
        tuning.problem(operation, target, topology, batch, layout=layout, threads=threads)
        for operation in ("gather", "scatter")
        for topology in (sparse, denser)
        for batch in (1, 64)
        for layout in ("row-major", "column-major")
        for threads in (1, 2)
    }
    assert len(keys) == 32
