"""The loop: it learns, it is deterministic, it resumes bit for bit, and it stops when it should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput, StoreError
from pollard.formats.topology import Topology
from pollard.nn.surgery import sparsify_
from pollard.training import (
    Examples,
    Outputs,
    TrainingDiverged,
    TrainingOptions,
    evaluate,
    generator,
    read_metrics,
    train,
)

SHAPE = (8, 6)


def problem(count=50):
    draw = generator(0, "problem")
    x = torch.randn(count, SHAPE[1], generator=draw)
    return Examples(x, (x @ torch.randn(SHAPE[1], 3, generator=draw)).argmax(1))


def model_with(dropout=0.0):
    draw = generator(0, "model")
    model = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0]), nn.ReLU(), nn.Dropout(dropout), nn.Linear(SHAPE[0], 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=draw)
    return model


def options(**changed):
    return TrainingOptions(**({"epochs": 3, "batch_size": 8, "lr": 0.05} | changed))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StopAfter:
    """An observer that ends the process's part in a run, as a kill would."""

    def __init__(self, step):
        self.step = step
        self.ended = False

    def begin(self, step, steps):
        self.first, self.steps = step, steps

    def after_step(self, step, loss):
        if step == self.step:
            raise KeyboardInterrupt

    def after_epoch(self, record):
        self.record = record

    def end(self):
        self.ended = True


def test_it_learns_and_reports_what_evaluate_finds():
    points = problem()
    model = model_with()
    before = evaluate(model, points)
    trained = train(model, points, {"test": points}, options(epochs=20))
    assert trained.record["test_loss"] < before.loss / 2
    assert trained.record["test_accuracy"] > 0.9
    assert (trained.steps, trained.record["epoch"]) == (20 * 7, 20)
    found = evaluate(model, points, batch_size=8)
    assert (found.loss, found.accuracy) == (trained.record["test_loss"], trained.record["test_accuracy"])
    assert model.training


def test_every_example_is_seen_once_an_epoch_in_another_order():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 2)

        def forward(self, x):
            if self.training:
                seen.append(x.flatten().tolist())
            return self.inner(x)

    numbers = Examples(torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64))
    train(Spy(), numbers, {}, options(epochs=2, batch_size=4, lr=1e-6))
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    first, second = ([number for batch in epoch for number in batch] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("stop", [1, 6, 7, 12, 13, 20])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, optimizer, stop):
    points = problem()
    chosen = options(optimizer=optimizer)
    whole = model_with(dropout=0.5)
    expected = train(whole, points, {"test": points}, chosen)
    spy = StopAfter(stop)
    with pytest.raises(KeyboardInterrupt):
        train(
            model_with(dropout=0.5),
            points,
            {"test": points},
            chosen,
            outputs=Outputs(folder=tmp_path, checkpoint_steps=3, observers=[spy]),
        )
    assert spy.ended
    resumed = model_with(dropout=0.5)
    trained = train(resumed, points, {"test": points}, chosen, outputs=Outputs(folder=tmp_path, checkpoint_steps=3))
    assert 0 <= trained.resumed_at < stop
    assert same(weights(resumed), weights(whole))
    clocks = {"seconds"}
    assert {k: v for k, v in trained.record.items() if k not in clocks} == {
        k: v for k, v in expected.record.items() if k not in clocks
    }
    assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def without_clocks(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("stop", [1, 2.0, 12 / 7, 0.5])
def test_what_stops_on_the_way_and_goes_on_ends_where_one_training_does(tmp_path, stop):
    points = problem()
    whole = model_with(dropout=0.5)
    train(whole, points, {"test": points}, options(), outputs=Outputs(folder=tmp_path / "whole"))
    outputs = Outputs(folder=tmp_path / "parts")
    first = train(model_with(dropout=0.5), points, {"test": points}, options(), outputs=outputs, stop=stop)
    assert first.steps == first.record["step"] == round(7 * stop)
    assert first.record["epoch"] == round(7 * stop) / 7
    parts = model_with(dropout=0.5)
    trained = train(parts, points, {"test": points}, options(), outputs=outputs)
    assert (trained.resumed_at, trained.steps) == (first.steps, 21)
    assert same(weights(parts), weights(whole))
    told, expected = (without_clocks(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("parts", "whole"))
    # Where it stopped within an epoch there is one line more.
    assert [line for line in told if line["step"] % 7 == 0] == expected


@pytest.mark.parametrize("start", [0, 1, 2.5])
def test_rates_and_orders_are_those_of_the_epochs_trained(start):
    first = round(7 * start)
    points = problem()
    seen, rates = [], options(schedule="cosine").learning_rate(21)
    recorder = Recorder()
    model = model_with()
    hook = model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    trained = train(model, points, {}, options(schedule="cosine"), outputs=Outputs(observers=[recorder]), start=start)
    hook.remove()
    assert (trained.steps, trained.resumed_at) == (21 - first, first)
    assert (recorder.first, recorder.steps) == (first, 21)
    assert trained.record["lr"] == rates(20)
    orders = [torch.randperm(50, generator=generator(0, f"epoch {epoch}")).split(8) for epoch in range(3)]
    expected = [points.x[batch] for order in orders for batch in order][first:]
    assert len(seen) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(seen, expected, strict=True))


def test_the_loss_of_a_part_of_an_epoch_is_the_mean_over_what_it_saw(tmp_path):
    points = problem()
    outputs = Outputs(folder=tmp_path)
    train(model_with(), points, {}, options(lr=1e-12), outputs=outputs, start=5 / 7, stop=10 / 7)
    order = [torch.randperm(50, generator=generator(0, f"epoch {epoch}")) for epoch in (0, 1)]
    expected = [
        evaluate(model_with(), Examples(points.x[part], points.y[part])).loss for part in (order[0][40:], order[1][:24])
    ]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [7, 10]
    assert [line["train_loss"] for line in lines] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("start, stop", [(0, 0), (2, 1), (-1, 1), (0, 4), (0, 0.01), (float("nan"), 1)])
def test_there_must_be_a_step_to_train(start, stop):
    with pytest.raises(InvalidInput, match="An epoch has 7 steps"):
        train(model_with(), problem(), {}, options(), start=start, stop=stop)


def test_a_checkpoint_past_the_stop_is_refused(tmp_path):
    outputs = Outputs(folder=tmp_path)
    train(model_with(), problem(), {}, options(), outputs=outputs)
    with pytest.raises(StoreError, match="at most step 7"):
        train(model_with(), problem(), {}, options(), outputs=outputs, stop=1)


def test_a_finished_run_is_not_trained_again(tmp_path):
    points = problem()
    model = model_with()
    first = train(model, points, {"test": points}, options(), outputs=Outputs(folder=tmp_path))
    again = model_with()
    second = train(again, points, {"test": points}, options(), outputs=Outputs(folder=tmp_path))
    assert second.resumed_at == second.steps == first.steps
    assert second.record == first.record
    assert second.seconds_per_step == pytest.approx(first.seconds_per_step)
    assert same(weights(again), weights(model))


def test_other_options_do_not_go_on_from_the_checkpoint(tmp_path):
    points = problem()
    train(model_with(), points, {}, options(), outputs=Outputs(folder=tmp_path))
    with pytest.raises(StoreError, match="recipe was another one"):
        train(model_with(), points, {}, options(lr=0.04), outputs=Outputs(folder=tmp_path))


def test_the_global_generator_is_left_as_it_was_and_does_not_matter():
    points = problem()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = model_with(dropout=0.5)
        before = torch.get_rng_state()
        train(model, points, {"test": points}, options())
        assert torch.equal(torch.get_rng_state(), before)
        results.append(weights(model))
    assert same(*results)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_sparse_and_masked_follow_one_trajectory(optimizer):
    points = problem()
    draw = generator(3, "mask")
    plan = {"0": Topology.random(SHAPE, 0.5, generator=draw), "3": Topology.random((3, SHAPE[0]), 0.5, generator=draw)}
    losses = {}
    for storage in ("compressed", "masked"):
        recorder = Recorder()
        model = sparsify_(model_with(), plan, storage=storage)
        chosen = options(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01)
        train(model, points, {"test": points}, chosen, outputs=Outputs(observers=[recorder]))
        losses[storage] = recorder.losses
    assert losses["compressed"] == pytest.approx(losses["masked"], rel=1e-4)


class Recorder(StopAfter):
    """An observer that keeps every loss."""

    def __init__(self):
        super().__init__(step=-1)
        self.losses = []

    def after_step(self, step, loss):
        self.losses.append(loss)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_metrics(tmp_path):
    points = problem()

    def bad_in_epoch_3(output, target):
        bad_in_epoch_3.calls += 1
        loss = nn.functional.cross_entropy(output, target)
        return loss * float("nan") if output.requires_grad and bad_in_epoch_3.calls > 2 * 14 else loss

    bad_in_epoch_3.calls = 0
    with pytest.raises(TrainingDiverged, match=r"loss nan at step 15 of 21, learning rate .*Lower lr"):
        train(
            model_with(), points, {"test": points}, options(), loss_fn=bad_in_epoch_3, outputs=Outputs(folder=tmp_path)
        )
    assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_gauges_go_into_the_metrics(tmp_path):
    points = problem()
    outputs = Outputs(folder=tmp_path, gauges={"answer": lambda model, optimizer: 42})
    train(model_with(), points, {}, options(epochs=1), outputs=outputs)
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    assert line["answer"] == 42


def test_examples_must_pair_up():
    points = problem()
    with pytest.raises(InvalidInput, match="50 train inputs and 49 targets"):
        train(model_with(), Examples(points.x, points.y[:-1]), {}, options())
    with pytest.raises(InvalidInput, match="0 test inputs"):
        train(model_with(), points, {"test": Examples(points.x[:0], points.y[:0])}, options())
