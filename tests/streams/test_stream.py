"""A number depends on its place and on nothing else: not on the block it is made in, the kernel, the threads, the memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pollard.errors import InvalidInput
from pollard.streams import Stream, generated, reference
from pollard.streams.stream import LARGEST

LAWS = ("uniform", "normal")
WORDS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1])
STREAMS = st.builds(Stream, st.integers(-(2**63), 2**64 - 1), WORDS, WORDS)
COLUMNS = st.integers(0, 200) | st.sampled_from([1, 15, 16, 17, 63, 64, 65, 127, 128, 129])
ROWS = st.sampled_from([0, 1, 2, 3, 5, 17])
SCALES = st.sampled_from([(0.0, 1.0), (-0.25, 0.5), (3.0, 0.0), (-1e30, 2e30), (1e-40, 2e-40)])

by_kernel = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def bits(numbers):
    return numbers.contiguous().view(torch.int32)


def block(stream, law, first, last, columns, scale=(0.0, 1.0), out=None):
    start, size = scale
    if law == "uniform":
        return stream.uniform(first, last, columns, start, start + size, out=out)
    return stream.normal(first, last, columns, start, size, out=out)


def by_twin(stream, law, first, last, columns, scale=(0.0, 1.0)):
    start, size = scale
    source = stream._uniform(start, start + size) if law == "uniform" else stream._normal(start, size)
    out = torch.empty(last - first, columns)
    if out.numel():
        reference.fill(source, first, out)
    return out


@by_kernel
@given(stream=STREAMS, first=WORDS, rows=ROWS, columns=COLUMNS, scale=SCALES, threads=st.sampled_from([1, 2, 3]))
@example(stream=Stream(0, 0), first=0, rows=400, columns=1000, scale=(0.0, 1.0), threads=2)
@example(stream=Stream(-1, 2**32 - 1, 2**32 - 1), first=2**32 - 17, rows=17, columns=63, scale=(0.0, 1.0), threads=3)
def test_kernels_make_the_bits_of_their_twin(kernels, stream, first, rows, columns, scale, threads):
    torch.set_num_threads(threads)
    last = min(first + rows, 2**32)
    for law in LAWS:
        made = block(stream, law, first, last, columns, scale)
        assert torch.equal(bits(made), bits(by_twin(stream, law, first, last, columns, scale)))


@by_kernel
@given(stream=STREAMS, columns=COLUMNS, cuts=st.lists(st.integers(0, 20), min_size=2, max_size=5).map(sorted))
def test_rows_are_the_same_in_every_block(target, stream, columns, cuts):
    for law in LAWS:
        whole = block(stream, law, 0, 20, columns)
        for first, last in itertools.pairwise(cuts):
            assert torch.equal(bits(block(stream, law, first, last, columns)), bits(whole[first:last]))


def test_columns_do_not_depend_on_how_many_there_are(target):
    stream = Stream(3, 1)
    for law in LAWS:
        wide = block(stream, law, 0, 3, 300)
        for columns in (1, 16, 63, 64, 65, 299):
            assert torch.equal(block(stream, law, 0, 3, columns), wide[:, :columns])


@by_kernel
@given(
    stream=STREAMS,
    first=WORDS,
    columns=st.integers(1, 200),
    scale=SCALES,
    count=st.sampled_from([0, 1, 3, 7, 8, 9, 31, 1024, 2500]),
    threads=st.sampled_from([1, 2, 3]),
)
def test_single_positions_have_the_numbers_of_their_rows(target, stream, first, columns, scale, count, threads):
    torch.set_num_threads(threads)
    last, made = min(first + 9, 2**32), torch.Generator().manual_seed(count)
    row = torch.randint(last - first, (count,), generator=made)
    column = torch.randint(columns, (count,), generator=made)
    start, size = scale
    for law in LAWS:
        whole = block(stream, law, first, last, columns, scale)
        end = start + size if law == "uniform" else size
        single = getattr(stream, f"{law}_at")(row + first, column, start, end)
        assert torch.equal(bits(single), bits(whole[row, column]))


def test_the_last_places_there_are(target):
    stream, last = Stream(0, 0), torch.tensor([2**32 - 1])
    near = torch.tensor([2**32 - 2])
    for law in LAWS:
        single = getattr(stream, f"{law}_at")
        assert torch.equal(single(last, last), single(last.repeat(9), last.repeat(9))[8:])
        assert len({float(single(*place)) for place in itertools.product((last, near), repeat=2)}) == 4


def test_a_kernel_ran(kernels, monkeypatch):
    monkeypatch.setattr(reference, "fill", None)
    monkeypatch.setattr(reference, "at", None)
    stream, place = Stream(0, 0), torch.tensor([1])
    assert float(stream.normal(0, 2, 70)[1, 1]) == float(stream.normal_at(place, place))


def test_none_runs_where_plain_torch_is_asked_for(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "reference")
    monkeypatch.setattr(generated, "Launch", None)
    stream, place = Stream(0, 0), torch.tensor([1])
    assert float(stream.uniform(0, 2, 70)[1, 1]) == float(stream.uniform_at(place, place))


@pytest.mark.parametrize(
    "memory",
    [
        lambda: torch.full((3, 70), torch.nan),
        lambda: torch.full((5, 90), torch.nan)[1:4, 7:77],
        lambda: torch.full((70, 3), torch.nan).t(),
        lambda: torch.full((3, 140), torch.nan)[:, ::2],
        lambda: torch.nn.Parameter(torch.full((3, 70), torch.nan)),
        lambda: torch.full((3, 70), torch.nan, requires_grad=True)[:, :],
    ],
)
def test_numbers_are_written_to_what_is_given_and_nowhere_else(target, memory):
    out = memory()
    for law in LAWS:
        versions = out._version
        assert block(Stream(5, 2), law, 4, 7, 70, out=out) is out
        assert torch.equal(out, block(Stream(5, 2), law, 4, 7, 70))
        assert out._version > versions
    base = out._base
    if base is not None and not base.requires_grad:
        assert int(base.isnan().sum()) == base.numel() - out.numel()


def test_single_columns_and_inference_mode_are_served(target):
    one = torch.zeros(4, 3)
    Stream(0, 0).normal(0, 4, 1, out=one[:, 1:2])
    assert torch.equal(one[:, 1], Stream(0, 0).normal(0, 4, 1).view(-1))
    assert (one[:, ::2] == 0).all()
    with torch.inference_mode():
        out = torch.empty(2, 3)
        Stream(0, 0).normal(0, 2, 3, out=out)
    assert torch.equal(out, Stream(0, 0).normal(0, 2, 3))


def test_meta_tensors_take_no_memory():
    out = torch.empty(2**20, 2**20, device="meta")[:4, :200]
    assert Stream(0, 0).normal(0, 4, 200, out=out) is out
    rows = torch.empty(7, dtype=torch.int64, device="meta")
    assert Stream(0, 0).uniform_at(rows, rows).shape == (7,)


def test_the_dtype_and_device_that_torch_defaults_to_change_nothing(target):
    there, before = Stream(0, 0).normal(0, 3, 5), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(Stream(0, 0).normal(0, 3, 5), there)
    finally:
        torch.set_default_dtype(before)


def test_seeds_are_64_bits(target):
    plain = Stream(2**64 - 5, 0).normal(0, 2, 9)
    assert torch.equal(Stream(np.uint64(2**64 - 5), 0).normal(0, 2, 9), plain)
    assert torch.equal(Stream(-5, 0).normal(0, 2, 9), plain)
    assert torch.equal(Stream(np.int64(-5), np.uint32(0)).normal(0, 2, 9), plain)
    assert not torch.equal(Stream(2**32 - 5, 0).normal(0, 2, 9), plain)


def test_bounds_are_kept(target):
    numbers = Stream(0, 0).uniform(0, 1000, 100, -0.5, 0.25)
    assert -0.5 <= numbers.min() < -0.4999
    assert 0.2499 < numbers.max() <= 0.25
    assert (Stream(0, 0).uniform(0, 2, 3, 7.0, 7.0) == 7.0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Stream(2**64, 0),
        lambda: Stream(-(2**63) - 1, 0),
        lambda: Stream(0.5, 0),
        lambda: Stream(0, -1),
        lambda: Stream(0, 2**32),
        lambda: Stream(0, 0, 2**32),
        lambda: Stream(0, 0).normal(-1, 2, 3),
        lambda: Stream(0, 0).normal(2, 1, 3),
        lambda: Stream(0, 0).normal(0, 2**32 + 1, 0),
        lambda: Stream(0, 0).normal(0, 1, -1),
        lambda: Stream(0, 0).normal(0, 0, 2**32 + 1),
        lambda: Stream(0, 0).normal(0, 1, 3, std=-1.0),
        lambda: Stream(0, 0).normal(0, 1, 3, mean=float("nan")),
        lambda: Stream(0, 0).normal(0, 1, 3, std=1e39),
        lambda: Stream(0, 0).uniform(0, 1, 3, 1.0, 0.0),
        lambda: Stream(0, 0).uniform(0, 1, 3, float("-inf"), 0.0),
        lambda: Stream(0, 0).uniform(0, 1, 3, -LARGEST, LARGEST),
        lambda: Stream(0, 0).normal(0, 2, 3, out=torch.empty(3, 2)),
        lambda: Stream(0, 0).normal(0, 2, 3, out=torch.empty(2, 3, dtype=torch.float64)),
        lambda: Stream(0, 0).normal_at(torch.tensor([0, 1]), torch.tensor([0])),
        lambda: Stream(0, 0).normal_at(torch.tensor([[0]]), torch.tensor([[0]])),
        lambda: Stream(0, 0).normal_at(torch.tensor([0]).int(), torch.tensor([0]).int()),
        lambda: Stream(0, 0).normal_at(torch.tensor([0]), torch.tensor([2**32])),
        lambda: Stream(0, 0).uniform_at(torch.tensor([-1]), torch.tensor([0])),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(InvalidInput):
        wrong()
