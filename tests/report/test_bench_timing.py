"""Timing in turns, verification before timing, and records that hide nothing."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from pollard.errors import InvalidInput, KernelError, PatternError
from pollard.report.bench import cases, interleaved, measure, network_cases, verify
from pollard.report.contenders import OPERATIONS, Case, Contender, contest


def network(widths: tuple[int, ...]) -> list[Case]:
    return network_cases(widths, 8, patterns=["v4"], densities=[0.25])


def contender(name: str, value: float) -> Contender:
    return Contender(name, lambda: torch.full((4,), value), lambda out: {"output": out})


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("op", OPERATIONS)
def test_every_contender_computes_the_same(op, pattern):
    case = Case(op, pattern, (32, 24, 8), 0.25)
    contenders = contest(case).contenders
    assert [one.name for one in contenders][:2] == ["pollard", "dense"]
    verify(case, contenders)


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
    names = {one.name for one in contest(Case(op, "v4", (32, 24, 8), 0.25)).contenders}
    assert names - {"mkl"} == {"pollard", "dense"} | peers
    assert {one.name for one in contest(Case(op, "v4", (32, 24, 8), 0.25), peers=False).contenders} == {
        "pollard",
        "dense",
    }


def test_a_network_and_its_twin_take_the_same_step():
    [case] = network((24, 32, 10))
    contenders = contest(case).contenders
    verify(case, contenders)
    compared = contenders[0].comparable(contenders[0].call())
    assert set(compared) == {"output", "gradient of layer 0", "gradient of layer 1"}


def test_a_wrong_result_has_no_speed():
    case = Case("forward", "unstructured", (4, 4, 1), 0.5)
    verify(case, [contender("pollard", 1.0), contender("dense", 1.0)])
    with pytest.raises(KernelError, match="pollard: output"):
        verify(case, [contender("pollard", 1.001), contender("dense", 1.0)])
    with pytest.raises(KernelError):
        verify(case, [contender("pollard", float("nan")), contender("dense", 1.0)])


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


def test_a_record_adds_up():
    record = measure(Case("forward", "v4", (32, 24, 8), 0.25), rounds=3).as_json()
    assert record["speedup"] == pytest.approx(record["dense_ms"] / record["ms"])
    assert record["dense_wins"] == (record["speedup"] < 1)
    assert record["gflops"] == pytest.approx(2e-6 * round(0.25 * 32 * 24) * 8 / record["ms"], rel=0.02)
    for name, milliseconds in (("pollard", record["ms"]), ("dense", record["dense_ms"])):
        fastest, slowest = record["spread_ms"][name]
        assert fastest <= milliseconds <= slowest
    assert record["optimizer"] is None
    assert record["dtype"] == "float32"


def test_threads_are_put_back():
    before = torch.get_num_threads()
    assert measure(Case("forward", "v4", (32, 24, 8), 0.25, threads=2), rounds=1, peers=False).threads == 2
    assert torch.get_num_threads() == before


def test_a_grid_has_every_combination():
    shapes = [(8, 4, 2), (4, 8, 2)]
    grid = cases(["forward", "step"], shapes, patterns=["v2"], densities=[0.5, 1.0], threads=[1, 2])
    assert len(grid) == len(set(grid)) == 16


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"op": "backward"}, InvalidInput),
        ({"density": 0.0}, InvalidInput),
        ({"density": float("nan")}, InvalidInput),
        ({"shape": (8, 0, 1)}, InvalidInput),
        ({"threads": 0}, InvalidInput),
        ({"optimizer": "lion"}, InvalidInput),
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
