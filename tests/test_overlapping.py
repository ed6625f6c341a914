"""Benchmarks that train several networks at once: graphs are made anew when what they hold has moved, and runs go on where they were left."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from fresh_process import BENCHMARKS
from pollard.errors import InvalidInput
from pollard.training import Examples, stepping

sys.path.append(str(BENCHMARKS))
import overlapping
import resnet_cifar
import set_cifar
import set_network

EPOCHS, AN_EPOCH, SIZE = 3, 6, 10
METHODS = ["set", "static", "dense"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(set_network, "WIDTHS", (3072, 60, 40, 60, 10))
    monkeypatch.setattr(set_network, "EPSILON", 5)
    monkeypatch.setattr(set_network, "bent_at_once", lambda: set_network.bent)
    for module in (set_network, set_cifar):
        monkeypatch.setattr(module, "BATCH", SIZE)


def images(count):
    draw = torch.Generator().manual_seed(count)
    return Examples(torch.randn(count, 3, 32, 32, generator=draw), torch.randint(10, (count,), generator=draw))


TRAIN, TEST = images(AN_EPOCH * SIZE), images(37)


def begun(method, epochs=EPOCHS):
    return set_cifar.Run(set_cifar.Name(method, 1), TRAIN, TEST, epochs)


def to_the_end(run, lot=4):
    while run.left:
        assert run.advance(lot) in range(1, lot + 1)
    return run


def came_to(run):
    return run.reached, {name: each for name, each in run.model.state_dict().items() if isinstance(each, torch.Tensor)}


def held(run):
    """Where everything lies that a graph of a step would go on reading and writing."""
    memory = [each.data_ptr() for each in run.model.parameters()]
    memory += [state["momentum_buffer"].data_ptr() for state in run.optimizer.state.values()]
    return memory, [id(each.topology) for each in run.model if hasattr(each, "topology")]


class Pretended:
    """A graph without a GPU: it takes no step when it is made, reads batches where it keeps them, and notices what has moved since."""

    made = 0

    def __init__(self, work, batch, *, stream, draws, before):
        del stream
        self.held = tuple(each.clone() for each in batch) if before is None else before.held
        assert draws == (work.__self__.dropout,)
        self.work, self.then = work, held(work.__self__)
        Pretended.made += 1

    def __call__(self, *batch):
        assert held(self.work.__self__) == self.then
        for own, each in zip(self.held, batch, strict=True):
            own.copy_(each)
        return self.work(*self.held)


# A graph of CUDA's would run none of Python's code, which counts steps.
@pytest.mark.filterwarnings("ignore::pollard.errors.SteppedPast")
@pytest.mark.parametrize("method", METHODS)
def test_graphs_take_the_same_steps(method, monkeypatch):
    by_itself, by_graphs = begun(method), begun(method)
    monkeypatch.setattr(overlapping, "Graph", Pretended)
    monkeypatch.setattr(Pretended, "made", 0)
    by_graphs.take.captures = True
    (reached, expected), (others, found) = (came_to(to_the_end(run)) for run in (by_itself, by_graphs))
    assert reached == others
    assert len(reached) == EPOCHS
    assert Pretended.made == (EPOCHS if method == "set" else 1)
    for name, each in expected.items():
        assert torch.equal(each, found[name]), name
    by_graphs.take.end()
    assert not by_graphs.take.graphs


def test_a_graph_is_made_once_its_batch_size_is_known():
    made = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(
            overlapping, "Graph", lambda work, batch, **options: made.append((len(batch[0]), options)) or work
        )
        take = overlapping.Replayed(lambda x: x + 1, stream=None)
        take.captures = True
        for _ in range(overlapping.FIRST + 2):
            assert take(torch.zeros(3)).tolist() == [1, 1, 1]
            take(torch.zeros(2))
        assert [size for size, _ in made] == [3, 2]
        first = take.graphs[3]
        take.anew()
        for _ in range(overlapping.AGAIN + 1):
            take(torch.zeros(3))
        assert [size for size, _ in made] == [3, 2, 3]
        assert made[-1][1]["before"] is first
        assert 3 not in take.stale


def test_no_topology_moves_within_a_graph(monkeypatch):
    run = begun("set")
    batch = next(set_network.batches(TRAIN, 1, 0))
    run.step(*batch)
    monkeypatch.setattr(stepping, "is_captured", lambda: True)
    with pytest.raises(InvalidInput, match="captured in a CUDA graph"):
        run.step(*batch)
    run.captured(*batch)


def test_an_exchange_is_not_queued_behind_other_steps():
    run, other = begun("set"), begun("static")
    lots = []
    while run.left:
        lots.append((run.steps, run.alone, run.advance(4)))
    assert lots[:4] == [(0, False, 4), (4, False, 1), (5, True, 1), (6, False, 4)]
    assert run.parts[-1].updates == EPOCHS
    assert [other.advance(4) for _ in range(5)] == [4, 4, 4, 4, 2]
    assert other.alone


@pytest.mark.parametrize("begin", [0, 4])
def test_batches_are_the_same_from_wherever_they_begin(begin):
    whole = list(set_network.batches(TRAIN, 3, 2))
    for one, other in zip(whole[begin:], set_network.batches(TRAIN, 3, 2, begin), strict=True):
        assert all(map(torch.equal, one, other))


def ticking(monkeypatch, module):
    """Time goes on by a second whenever somebody looks at it."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))


def calls_of(made, seconds):
    """How many calls of so many seconds all takes, each of which goes on where the one before was left."""
    for calls in range(1, 1000):
        contest = made()
        contest.go(1, seconds)
        if not contest.live:
            return calls
    raise AssertionError("it never ends")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_ran_out_of_time_goes_on_bit_for_bit(method, monkeypatch, tmp_path, capsys):
    expected = came_to(to_the_end(begun(method)))
    monkeypatch.setattr(set_cifar.Contest, "lot", 2)
    ticking(monkeypatch, overlapping)
    name = set_cifar.Name(method, 1)
    assert calls_of(lambda: set_cifar.Contest([name], (TRAIN, TEST), tmp_path, EPOCHS), 8) > 2
    state = torch.load(tmp_path / f"{set_cifar.stem(name, torch.device('cpu'))}.pt")
    assert state["reached"] == expected[0]
    assert all(torch.equal(each, state["parts"][0][key]) for key, each in expected[1].items())
    told = json.loads((tmp_path / f"{method}-1-cpu.json").read_text())
    assert told == {
        "method": method, "seed": 1, "device": "cpu", "precision": "float32", "test_accuracy": expected[0]
    }  # fmt: skip
    assert f"{method} 1: {EPOCHS} epochs, {expected[0][-1]} % after {EPOCHS}" in capsys.readouterr().out


def test_it_says_how_far_runs_are_and_writes_states_meanwhile(monkeypatch, tmp_path, capsys):
    ticking(monkeypatch, overlapping)
    for name in ("SECONDS", "TOLD"):
        monkeypatch.setattr(overlapping, name, 5)
    written = []
    monkeypatch.setattr(set_cifar.Contest, "lot", 20)
    monkeypatch.setattr(set_cifar.Contest, "save", lambda self: written.append(self.seconds))
    monkeypatch.setattr(set_cifar.Contest, "keep", lambda self, run: None)
    set_cifar.Contest([set_cifar.Name("static", seed) for seed in (0, 1)], (TRAIN, TEST), tmp_path, 40).go(2, 1000)
    assert len(written) > 2
    assert written == sorted(written)
    told = [int(each) for each in re.findall(r"static 0: (\d+) epochs, .*; static 1", capsys.readouterr().out)]
    assert told == sorted(set(told))
    assert len(told) > 2


def found_of(method, device, *accuracies):
    shared = {"method": method, "device": device, "precision": "float32"}
    return [{**shared, "seed": seed, "test_accuracy": each} for seed, each in enumerate(accuracies)]


def test_a_row_holds_what_runs_came_to_after_epochs_that_were_published():
    rising = [each / 10 for each in range(1000)]
    (row,) = set_cifar.rows(found_of("set", "cpu", rising, rising[:300], rising[:150]))
    assert row["epochs"] == [1000, 300, 150]
    assert list(row["after"]) == ["200", "400", "600", "1000"]
    assert row["after"]["200"] == {"seeds": 2, "mean": 18.95, "deviation": 0.0, "published": 65.5}
    assert row["after"]["1000"] == {"seeds": 1, "mean": 98.95, "deviation": None, "published": 73.41}
    assert row["published_best_of_1000"] == 73.85
    (short,) = set_cifar.rows(found_of("dense", "cpu", rising[:20]))
    assert short["after"] == {}


def test_rows_of_other_devices_stay():
    before = set_cifar.rows([*found_of("set", "cpu", [1.0] * 200), *found_of("static", "cpu", [2.0] * 200)])
    now = set_cifar.rows([*found_of("set", "GPU", [3.0] * 200), *found_of("static", "cpu", [4.0] * 200)])
    joined = set_cifar.joined(before, now)
    assert [(each["method"], each["device"], each["after"]["200"]["mean"]) for each in joined] == [
        ("set", "cpu", 1.0), ("static", "cpu", 4.0), ("set", "GPU", 3.0)
    ]  # fmt: skip


def test_which_runs_of_resnet():
    picked = resnet_cifar.picked("dense,random:10,magnitude,random", 1)
    assert [str(each) for each in picked] == [
        "dense 1 0", "random 0.1 0", "magnitude 0.1 0", "magnitude 0.562 0", "random 0.562 0"
    ]  # fmt: skip
    assert len(resnet_cifar.picked("grasp:56", 3)) == 3
    with pytest.raises(SystemExit, match="no run is called random:7"):
        resnet_cifar.picked("random:7", 1)


def test_resnet_goes_on_where_it_was_left(monkeypatch, tmp_path):
    for name, value in {"EPOCHS": 1, "DENSE_EPOCHS": 2, "EVERY": 1, "BATCH": 4, "SCORED": 4}.items():
        monkeypatch.setattr(resnet_cifar, name, value)
    monkeypatch.setattr(resnet_cifar.Contest, "lot", 1)
    draw = torch.Generator().manual_seed(0)
    of = lambda count: Examples(  # noqa: E731
        torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw),
        torch.randint(10, (count,), generator=draw),
    )
    on = resnet_cifar.Images(of(10), of(8), torch.device("cpu"))
    names = resnet_cifar.picked("dense,magnitude:10", 1)
    resnet_cifar.Contest(names, on, tmp_path / "whole", autocast=False).go(1, float("inf"))
    ticking(monkeypatch, overlapping)
    assert calls_of(lambda: resnet_cifar.Contest(names, on, tmp_path / "parts", autocast=False), 8) > 2
    whole, parts = (json.loads((tmp_path / each / "results.json").read_text()) for each in ("whole", "parts"))
    assert whole["runs"] == parts["runs"]
    assert [(each["method"], each["epochs"]) for each in parts["runs"]] == [("dense", 2), ("magnitude", 1)]
