"""Timing in turns, verification before timing, and records that hide nothing."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from pollard.errors import InvalidInput, KernelError, PatternError
from pollard.report import timing
from pollard.report.bench import cases, measure, network_cases, verified
from pollard.report.case import DTYPES, OPERATIONS, Case, Contender, Reference
from pollard.report.contenders import contest
from pollard.report.dense_ways import NN_LINEAR, usable_ways
from pollard.report.timing import interleaved


def network(widths: tuple[int, ...], dtype: str = "float32") -> list[Case]:
    return network_cases(widths, 8, patterns=["v4"], densities=[0.25], dtypes=[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_every_contender_computes_the_same(op, pattern, dtype):
    prepared = contest(Case(op, pattern, (32, 24, 8), 0.25, dtype=dtype))
    assert next(iter(prepared)).name == "pollard"
    assert NN_LINEAR in prepared.dense.whole
    assert len(verified(prepared)) >= 2


@pytest.mark.parametrize(
    ("op", "peers"),
    [
        ("forward", {"torch_sparse", "scipy"}),
        ("input_grad", {"torch_sparse", "scipy"}),
        ("value_grad", {"torch_sparse"}),
        ("forward+backward", {"torch_sparse"}),
        ("step", set()),
    ],
)
def test_peers_take_part_where_they_have_the_operation(op, peers):
    case = Case(op, "v4", (32, 24, 8), 0.25)
    assert {one.name for one in contest(case).peers} - {"mkl"} == peers
    assert contest(case, peers=False).peers == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_peers_have_no_half_precision(dtype):
    assert contest(Case("forward", "v4", (32, 24, 8), 0.25, dtype=dtype)).peers == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_network_and_its_twin_take_the_same_step(dtype):
    [case] = network((24, 32, 10), dtype)
    prepared = contest(case)
    verified(prepared)
    compared = prepared.pollard.comparable(prepared.pollard.call())
    assert set(compared) == {"output", "gradient of layer 0", "gradient of layer 1"}


@pytest.mark.parametrize(("dtype", "right", "wrong"), [("float32", 1e-6, 1e-3), ("bfloat16", 4e-3, 3e-2)])
def test_a_wrong_result_has_no_speed(dtype, right, wrong):
    reference = contest(Case("forward", "unstructured", (4, 4, 1), 0.5, dtype=dtype)).pollard.reference
    result = reference.results["output"]
    for factor in (1.0, 1.0 + right):
        held(reference, result * factor).verify()
    for broken in (result * (1.0 + wrong), result * float("nan")):
        with pytest.raises(KernelError, match="pollard: output"):
            held(reference, broken).verify()


def held(reference: Reference, output: torch.Tensor) -> Contender:
    return Contender("pollard", lambda: output, lambda out: {"output": out}, reference)


def test_contenders_take_turns_in_changing_order():
    log: list[str] = []
    pause = 0.004
    calls = {name: lambda name=name: (log.append(name), time.sleep(pause)) for name in ("a", "b")}
    samples = interleaved(calls, rounds=8)
    rounds = [tuple(log[-32:][turn : turn + 4]) for turn in range(0, 32, 4)]
    assert set(rounds) == {("a", "a", "b", "b"), ("b", "b", "a", "a")}
    assert all(sample >= pause * 1e3 for times in samples.values() for sample in times)
    assert {name: len(times) for name, times in samples.items()} == {"a": 8, "b": 8}


def test_short_calls_are_repeated_and_the_collector_waits():
    seen: list[bool] = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, rounds=2)
    assert len(seen) > 100
    assert seen[0]
    assert not seen[-1]
    assert gc.isenabled()


def test_one_interrupted_call_does_not_shorten_the_samples():
    calls = []

    def call():
        calls.append(None)
        if len(calls) == 2:  # the first that is timed
            time.sleep(0.0015)

    interleaved({"a": call}, rounds=1)
    assert len(calls) > 100


def test_a_long_call_is_timed_once():
    calls = []
    samples = interleaved({"a": lambda: calls.append(None)}, rounds=8, long=0.0)
    assert len(samples["a"]) == 1
    assert len(calls) == 1 + timing.TRIES


def test_a_record_adds_up():
    record = measure(Case("forward", "v4", (32, 24, 8), 0.25), rounds=3).as_json()
    assert record["speedup"] == pytest.approx(record["best_dense_ms"] / record["ms"])
    assert record["nn_linear_speedup"] == pytest.approx(record["dense_ms"] / record["ms"])
    assert record["bf16_speedup"] == pytest.approx(record["bf16_dense_ms"] / record["ms"])
    assert record["dense_wins"] == (record["speedup"] < 1)
    assert record["gflops"] == pytest.approx(2e-6 * round(0.25 * 32 * 24) * 8 / record["ms"], rel=0.02)
    told = (("pollard", "ms"), (NN_LINEAR, "dense_ms"), (record["best_dense"], "best_dense_ms"))
    for name, field in (*told, ("bfloat16 " + record["bf16_dense"], "bf16_dense_ms")):
        fastest, slowest = record["spread_ms"][name]
        assert fastest <= record[field] <= slowest
    assert record["optimizer"] is None
    assert record["dtype"] == "float32"
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["kernels"] == record["target"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_no_dense_way_is_faster_than_the_best(op, dtype):
    record = measure(Case(op, "v4", (32, 24, 8), 0.25, dtype=dtype), rounds=1, peers=False)
    assert record.best_dense_ms <= record.dense_ms
    assert record.dtype == dtype
    if dtype == "bfloat16":
        assert (record.bf16_dense_ms, record.bf16_dense) == (record.best_dense_ms, record.best_dense)
    elif op in ("forward", "input_grad", "value_grad"):
        assert record.bf16_dense in usable_ways(op, torch.bfloat16)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    assert measure(Case("forward", "v4", (32, 24, 8), 0.25, threads=2), rounds=1, peers=False).threads == 2
    assert torch.get_num_threads() == before


def test_a_grid_has_every_combination():
    shapes = [(8, 4, 2), (4, 8, 2)]
    several = {"densities": [0.5, 1.0], "threads": [1, 2], "dtypes": ["float32", "bfloat16"]}
    grid = cases(["forward", "step"], shapes, patterns=["v2"], **several)
    assert len(grid) == len(set(grid)) == 32
    assert len(network_cases((8, 4), 2, patterns=["v2"], **several)) == 8


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"op": "backward"}, InvalidInput),
        ({"density": 0.0}, InvalidInput),
        ({"density": float("nan")}, InvalidInput),
        ({"shape": (8, 0, 1)}, InvalidInput),
        ({"threads": 0}, InvalidInput),
        ({"optimizer": "lion"}, InvalidInput),
        ({"dtype": "int8"}, InvalidInput),
        ({"pattern": "v3"}, PatternError),
        ({"shape": (6, 8, 1)}, PatternError),
    ],
    ids=str,
)
def test_a_case_that_cannot_exist_is_refused(change, error):
    good = {"op": "forward", "pattern": "v4", "shape": (8, 8, 1), "density": 0.5}
    Case(**good)
    with pytest.raises(error):
        Case(**good | change)


def test_a_network_needs_two_ends():
    with pytest.raises(InvalidInput, match="network"):
        network((8,))
