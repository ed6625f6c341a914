"""A topology that moves, and what is made again for it, against the slow twins, for every instruction set of this CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.errors import InvalidInput, KernelError, KernelFallback, TopologyError
from pollard.formats.indices import index_dtype
from pollard.formats.sampling import sample_absent
from pollard.formats.topology import Topology
from pollard.kernels.code import jit, once
from pollard.kernels.indices.rewire import move_values, positions_of, rewire, sample_grown
from pollard.kernels.indices.turning import even
from pollard.kernels.products import derived
from strategies import changes, seeds, topologies

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NONE = torch.empty(0, dtype=torch.int64)
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def large(shape=(300, 2000), density=0.1, pattern="unstructured"):
    # Most rows hold grains, some none, one all of them.
    mask = torch.rand(shape[0] // 4, shape[1], generator=seeded()) < density
    mask[3], mask[7:9] = True, False
    rows = 4 if pattern == "v4" else 1
    mask = mask.repeat_interleave(4, 0) if rows == 4 else mask.repeat(4, 1)
    return Topology.from_mask(mask, pattern)


def assert_same(fast, slow):
    assert fast[0].same_as(slow[0])
    assert (fast[0].shape, fast[0].pattern) == (slow[0].shape, slow[0].pattern)
    assert torch.equal(fast[1], slow[1])
    assert {fast[1].dtype, fast[0].columns.dtype, fast[0].row_pointers.dtype} == {torch.int32}


def some(count, share, seed):
    return torch.rand(count, generator=seeded(seed)) < share


@shared
@given(data=st.data())
def test_a_change_equals_its_twin(target, data):
    here = data.draw(topologies())
    change = data.draw(changes(here))
    assert_same(rewire(here, *change), here.rewired(*change))


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.7, 1.0])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("anew", [False, True])
def test_a_large_change_equals_its_twin(target, pattern, share, threads, anew):
    torch.set_num_threads(threads)
    here = large(pattern=pattern)
    stays = some(here.grains, share, 1)
    free = torch.ones(here.places, dtype=torch.bool)
    free[here.positions(None if anew else stays)] = False
    grown = free.nonzero().view(-1)
    for coming in (NONE, grown, grown[some(len(grown), 0.05, 2)]):
        assert_same(rewire(here, stays, coming, anew=anew), here.rewired(stays, coming))


def test_what_stays_cannot_come_anew(target):
    torch.set_num_threads(3)
    here = large()
    stays = some(here.grains, 0.5, 1)
    with pytest.raises(TopologyError, match="both stays and grows"):
        rewire(here, stays, here.positions(stays)[-3:], anew=True)


@pytest.mark.parametrize("stays, grown", [([True], []), ([True, True, False], [1, 2]), ([True, False, False], [6])])
def test_a_change_that_is_none_is_refused(target, stays, grown):
    here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    with pytest.raises(TopologyError):
        rewire(here, torch.tensor(stays), torch.tensor(grown, dtype=torch.int64))


def test_rows_whose_grains_all_come_back_lose_nothing(target):
    torch.set_num_threads(3)
    here = large()
    there, source = rewire(here, torch.zeros(here.grains, dtype=torch.bool), here.positions())
    assert there.same_as(here)
    assert torch.equal(source, torch.arange(here.grains, dtype=torch.int32))


@shared
@given(data=st.data(), seed=seeds)
def test_what_may_grow_is_drawn_like_any_sample_of_what_is_absent(target, data, seed):
    here = data.draw(topologies())
    stays, _ = data.draw(changes(here))
    for taken in (None, stays):
        present = here.positions(taken)
        total = here.places
        count = data.draw(st.integers(0, total - len(present)))
        slow = sample_absent(total, present.numpy(), count, seeded(seed))
        fast = sample_grown(here, count, seeded(seed), stays=taken)
        assert fast.dtype == torch.int64
        assert np.array_equal(fast.numpy(), slow)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [3, 20_000, 500_000])
def test_a_large_sample_is_the_same_for_any_number_of_threads(target, threads, count):
    torch.set_num_threads(threads)
    here = large()
    stays = some(here.grains, 0.7, 1)
    slow = sample_absent(600_000, here.positions(stays).numpy(), count, seeded())
    assert np.array_equal(sample_grown(here, count, seeded(), stays=stays).numpy(), slow)


@shared
@given(data=st.data())
def test_positions_of_some_grains_equal_their_twin(target, data):
    here = data.draw(topologies())
    only, _ = data.draw(changes(here))
    found = positions_of(here, only)
    assert found.dtype == torch.int64
    assert torch.equal(found, here.positions(only))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.7, 1.0])
def test_positions_of_many_grains_equal_their_twin(target, threads, share):
    torch.set_num_threads(threads)
    here = large()
    only = some(here.grains, share, 1)
    assert torch.equal(positions_of(here, only), here.positions(only))
    with pytest.raises(TopologyError, match="whether it stays"):
        positions_of(here, only[1:])


def test_no_more_grows_than_there_is_room(target):
    here = Topology.from_positions((2, 2), "unstructured", torch.tensor([0, 3]))
    for count in (-1, 3):
        with pytest.raises(InvalidInput, match="out of 2 absent"):
            sample_grown(here, count)
    for stays in ([1, 0], [True], [0.0, 1.0]):
        with pytest.raises(TopologyError, match="stays"):
            sample_grown(here, 1, stays=torch.tensor(stays))


@shared
@given(data=st.data())
def test_values_move_with_their_grains(target, data):
    here = data.draw(topologies())
    stays, grown = data.draw(changes(here))
    there, source = rewire(here, stays, grown)
    dtype = data.draw(st.sampled_from(FLOATS))
    values = torch.rand(here.nnz).to(dtype)
    dense = torch.zeros(here.shape[0] * here.shape[1], dtype=dtype)
    dense[here.weight_positions()] = values
    stayed = torch.zeros(dense.shape, dtype=torch.bool)
    back = torch.isin(here.positions(), grown)
    stayed[here.weight_positions().view(-1, here.pattern.size)[stays | back].view(-1)] = True
    places = there.weight_positions()
    expected = dense[places].masked_fill(~stayed[places], 0.5)
    rows = here.pattern.size
    assert torch.equal(move_values(values, source, 0.5, size=rows), expected)
    fill = torch.rand(int((source < 0).sum()) * rows).to(dtype)
    expected[~stayed[places]] = fill
    out = torch.full_like(expected, torch.nan)
    assert move_values(values, source, fill, size=rows, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 1.0])
def test_many_values_move_in_order_and_out_of_it(target, threads, share):
    torch.set_num_threads(threads)
    stays = some(30_007, share, 1)
    source = torch.where(stays, torch.arange(30_007), -1).int()[some(30_007, 0.7, 2)]
    values = torch.rand(30_007)
    for places in (source, source.flip(0), source[torch.randperm(len(source), generator=seeded())]):
        expected = torch.where(places < 0, 0.5, values[places])
        assert torch.equal(move_values(values, places, 0.5), expected)
        fill = torch.rand(int((places < 0).sum()))
        assert torch.equal(move_values(values, places, fill), expected.masked_scatter(places < 0, fill))
        with pytest.raises(InvalidInput, match="belong to another topology"):
            move_values(values[: int(places.max())], places, 0.5)


def test_parameters_and_strided_values_move_too(target):
    source = torch.tensor([2, -1, 0], dtype=torch.int32)
    for values in (torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), torch.arange(1.0, 7.0)[::2].sub(0).mul(1)):
        moved = move_values(values, source, -1.0)
        assert not moved.requires_grad
        assert moved.tolist() == [values[2].item(), -1.0, values[0].item()]


VALUES, SOURCE = torch.ones(4), torch.tensor([1, -1], dtype=torch.int32)
BAD = {
    "a source of 4": (VALUES, torch.tensor([4], dtype=torch.int32), {}),
    "a source of 2": (VALUES, torch.tensor([2], dtype=torch.int32), {"size": 2}),
    r"at torch\.int64": (VALUES, SOURCE.long(), {}),
    r"grains \* 3": (VALUES, SOURCE, {"size": 3}),
    "floats on one device": (VALUES.long(), SOURCE, {}),
    "fill of shape": (VALUES, SOURCE, {"fill": torch.zeros(2)}),
    "Leave out= out": (VALUES, SOURCE, {"out": torch.zeros(3)}),
    "contiguous": (VALUES, SOURCE, {"out": torch.zeros(4)[::2]}),
    r"out of torch\.float64": (VALUES, SOURCE, {"out": torch.zeros(2).double()}),
}


@pytest.mark.parametrize("message", BAD)
def test_values_that_do_not_fit_are_refused(target, message):
    values, source, options = BAD[message]
    with pytest.raises(InvalidInput, match=message):
        move_values(values, source, **{"fill": 0.0, **options})


def assert_columns(topology):
    whole = topology.transpose()
    for width in (1, 7, 64, topology.groups):
        turned = derived.by_columns(topology, width)
        made = turned.tiling.pointers, turned.rows, turned.permutation
        slow = derived.turned_slowly(topology, turned.tiling.width)
        dtypes = (torch.int32, index_dtype(topology.groups), torch.int32)
        for ours, theirs, dtype in zip(made, slow, dtypes, strict=True):
            assert ours.dtype == dtype
            assert torch.equal(ours, theirs)
        cuts = turned.bounds(3)
        assert torch.equal(cuts, even(whole.row_pointers, 3))
    for ours, theirs in zip(made, (whole.row_pointers, whole.groups, whole.permutation), strict=True):
        assert torch.equal(ours.int(), theirs)


@shared
@given(mask=st.tuples(st.integers(1, 9), st.integers(0, 30)), keep=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_a_transpose_equals_its_twin(target, mask, keep):
    torch.set_num_threads(3)
    assert_columns(Topology.from_mask(torch.rand(mask, generator=seeded()) < keep))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(300, 2000), (2000, 300), (4, 100_000), (65_536, 1), (65_537, 1)])
def test_a_large_transpose_equals_its_twin(target, threads, shape):
    torch.set_num_threads(threads)
    assert_columns(
        large(shape) if shape[0] >= 300 and shape[1] > 1 else Topology.random(shape, 0.3, generator=seeded())
    )


def test_a_transpose_is_held_once_and_counted(target):
    topology = large()
    alone = topology.bytes + derived.derived_bytes(topology)
    assert derived.by_columns(topology, 100) is derived.by_columns(topology, 100)
    held = 4 * (3 * topology.shape[1] + 1) + 6 * topology.grains
    assert topology.bytes + derived.derived_bytes(topology) == alone + held
    derived.forget(topology, {100}, transposed=True)
    assert topology.bytes + derived.derived_bytes(topology) == alone


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 7, 256, 1999])
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_tiles_equal_their_twin(target, threads, width, pattern):
    torch.set_num_threads(threads)
    topology = large(pattern=pattern)
    tiles = derived.tiling(topology, width)
    assert torch.equal(tiles.pointers, derived._table(topology, width, tiles.tiles))


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("widths", [(16, 64, 48, 1008), (96, 2000), (64, 100, 1984, 1000), (1000, 1000, 3000)])
def test_tiles_made_from_narrower_ones_equal_their_twin(target, widths, pattern):
    topology = large(pattern=pattern)
    for width in widths:
        tiles = derived.tiling(topology, width)
        if tiles.stride:
            assert torch.equal(tiles.pointers, derived._table(topology, tiles.width, tiles.tiles))
    if pattern == "unstructured":
        assert_columns(topology)


def test_kernels_that_do_not_compile_leave_all_to_the_twins_with_one_warning(monkeypatch):
    def refuse(spec):
        raise KernelError("an LLVM error", "IR that compiles", "Report it.")

    monkeypatch.setattr(jit, "load", refuse)
    monkeypatch.setattr(once, "_told", set())
    here = large()
    stays = some(here.grains, 0.5, 1)
    with pytest.warns(KernelFallback, match="Plain torch runs instead"):
        assert_same(rewire(here, stays, NONE), here.rewired(stays, NONE))
    drawn = sample_absent(600_000, here.positions().numpy(), 9, seeded())
    assert np.array_equal(sample_grown(here, 9, seeded()).numpy(), drawn)
    assert move_values(VALUES, SOURCE, 0.0).tolist() == [1, 0]
    assert_columns(here)
    derived.tiling(here, 16)
