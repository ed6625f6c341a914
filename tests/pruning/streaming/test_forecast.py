"""What a decision will take is told before it begins, and comes to that."""

from __future__ import annotations

import itertools
import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import pollard
from networks import convolutions
from pollard.errors import InvalidInput
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.streaming import forecast, meter, rehearsal
from pollard.pruning.streaming.decision import StreamedDecision
from pollard.pruning.streaming.forecast import Forecast
from pollard.streamed import source
from pollard.streamed.source import PACE, Pace, blocks


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 5)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + nn.functional.scaled_dot_product_attention(q, k, v)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 64), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 5))


MODELS = {"mlp": (mlp, (12,)), "convolutions": (convolutions, (3, 6, 6)), "attention": (Attention, (4, 16))}
SAMPLES = 64


def streamed(model="mlp", samples=SAMPLES):
    make, shape = MODELS[model]
    with pollard.never_dense(0):
        network = make()
    draw = torch.Generator().manual_seed(0)
    return network, (torch.randn(samples, *shape, generator=draw), torch.arange(samples) % 5)


def foretold(model, batch, rule="snip", **options):
    told = []
    pollard.prune(model, rule, 0.2, batch, forecast=told.append, **options)
    return told[0]


@pytest.fixture
def decided(monkeypatch):
    """What `foresee` is called with."""
    calls, own = [], forecast.foresee
    monkeypatch.setattr(
        "pollard.pruning.streaming.decision.foresee", lambda *given: (calls.append(given), own(*given))[1]
    )
    return calls


@pytest.mark.parametrize("room", [1 << 21, 1 << 9])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", ["snip", "grasp", "synflow", "magnitude"])
def test_few_samples_and_rows_tell_the_bytes_that_all_of_them_take(rule, model, room, decided, monkeypatch):
    if rule == "synflow" and model == "attention":
        pytest.skip("a flow through attention is not what synflow scores")
    monkeypatch.setattr(source, "ROOM", room)
    network, batch = streamed(model)
    told = foretold(network, batch, rule, rounds=1, allocation="erk")
    ((within, _, _, part),) = decided
    most = max(rehearsal._bytes(within.of_few(0 if rule == "magnitude" else SAMPLES), Pace(), part))
    foreseen = told.block_bytes + told.sample_bytes
    # A block is there while the next is made.
    assert 0.6 * most <= foreseen / forecast.HOLES <= 1.25 * most <= foreseen


def test_each_batch_more_takes_room_for_inputs_and_gradients_of_layers():
    network, batch = streamed()
    one, two, chunks = (
        foretold(network, batch),
        foretold(network, [batch, batch]),
        foretold(network, batch, scoring=pollard.Scoring(chunk_size=SAMPLES // 2)),
    )
    assert (one.samples, two.samples, chunks.samples) == (SAMPLES, 2 * SAMPLES, SAMPLES)
    assert (one.passes, two.passes, chunks.passes) == (3, 5, 5)
    assert one.sample_bytes < two.sample_bytes < 2 * one.sample_bytes
    assert chunks.sample_bytes <= one.sample_bytes


def test_rounds_pass_as_often_and_list_no_more_than_there_is_room_for(monkeypatch):
    network, batch = streamed()
    weights = sum(each.numel() for each in network.parameters() if each.dim() > 1)
    told = foretold(network, batch, "iter-snip", rounds=3)
    assert (told.weights, told.kept, told.passes) == (weights, round(0.2 * weights), 9)
    assert told.kept_bytes == forecast.KEPT_BYTES * round(0.2 ** (1 / 3) * weights)
    monkeypatch.setattr(forecast, "ROOM", 3000)
    assert foretold(network, batch, "iter-snip", rounds=3).kept_bytes == forecast.KEPT_BYTES * 3000
    assert (
        foretold(network, batch, "iter-snip", rounds=3).passes == 10
    )  # of the first round, where it ends is looked for


@pytest.mark.parametrize("rule", [name for name, rule in CRITERIA.items() if rule.by_row])
def test_a_rehearsal_leaves_no_trace(rule, monkeypatch):
    network, batch = streamed()
    scoring, plans, after = pollard.Scoring(mode="train"), [], []
    told = []
    for timed in (0, 1 << 60):
        monkeypatch.setattr(forecast, "TIMED", timed)
        draw = torch.Generator().manual_seed(3)
        torch.manual_seed(5)
        rounds = min(3, CRITERIA[rule].rounds)
        plans.append(
            pollard.prune(network, rule, 0.2, batch, generator=draw, scoring=scoring, rounds=rounds, forecast=told.append)
        )  # fmt: skip
        after.append((draw.get_state(), torch.get_rng_state()))
    assert [each.seconds is None for each in told] == [False, True]
    assert told[0].seconds > 0
    assert all(plans[0][name].same_as(plans[1][name]) for name in plans[0])
    assert all(torch.equal(*each) for each in zip(*after, strict=True))
    assert isinstance(PACE.get(), Pace)
    assert type(PACE.get()) is Pace


def test_dropout_falls_as_if_nothing_was_rehearsed(monkeypatch):
    network, batch = streamed()
    told, plans = foretold(network, batch), []
    for _ in range(2):
        torch.manual_seed(5)
        plans.append(pollard.prune(network, "snip", 0.2, batch, scoring=pollard.Scoring(mode="train")))
        monkeypatch.setattr(StreamedDecision, "_foreseen", lambda *_: told)
    assert all(plans[0][name].same_as(plans[1][name]) for name in plans[0])


def test_a_model_that_takes_no_fewer_samples_is_decided_over_and_no_word_is_said_of_them():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(SAMPLES, -1))

    network, batch = streamed()
    told = foretold(Fixed(*network), batch)
    assert told.sample_bytes is None
    assert "samples" not in str(told)
    assert told.peak_bytes == told.kept_bytes + told.block_bytes


@pytest.mark.parametrize(("samples", "density", "fix"), [(4000, 0.01, "fewer samples"), (4, 0.9, "density")])
def test_what_cannot_fit_is_refused_with_the_numbers_and_a_way_out(samples, density, fix, monkeypatch):
    network, batch = streamed(samples=samples)
    monkeypatch.setattr(forecast, "free_bytes", lambda: 1 << 12)
    made = []
    monkeypatch.setattr(meter.Meter, "count", lambda self, weights: made.append(weights))
    with pytest.raises(InvalidInput, match=fix) as caught:
        pollard.prune(network, "snip", density, batch, allocation="erk")
    assert f"{samples:,} samples" in str(caught.value)
    assert "0.00 GB that are free" in str(caught.value)
    assert not made


def test_what_the_system_does_not_tell_refuses_nothing(monkeypatch):
    network, batch = streamed()
    monkeypatch.setattr(forecast, "free_bytes", lambda: None)
    assert foretold(network, batch).free_bytes is None


def test_whoever_is_told_may_stop_it():
    def stop(told):
        raise KeyboardInterrupt

    network, batch = streamed()
    with pytest.raises(KeyboardInterrupt):
        pollard.prune(network, "snip", 0.2, batch, forecast=stop)


def test_dense_weights_have_no_forecast():
    network, batch = streamed()
    pollard.prune(pollard.densify_(network), "snip", 0.2, batch, forecast=lambda told: pytest.fail(str(told)))


def test_rows_that_are_left_out_take_as_long_as_those_that_are_not(monkeypatch):
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: next(clock))
    pace = rehearsal._SomeRows()
    with rehearsal._at(pace):
        seen = list(blocks((100 * 32 * 16, 1)))
        with pace.one_of(5):
            pass
        whole = list(blocks((40, 1)))
    assert seen == [(0, 3200), (3200, 6400)]
    assert whole == [(0, 32), (32, 40)]
    # A second for 3200 rows, of which 44,800 more are left out; a second for each of four parts more.
    assert pace._left_out == 14 + 4
    assert list(blocks((40, 1))) == [(0, 40)]


def test_nothing_shares_the_time_of_one_part_where_nothing_is_rehearsed():
    assert isinstance(Pace().one_of(3), nullcontext)


@pytest.mark.parametrize("seconds", [None, 1.0, 60.0])
def test_a_long_decision_says_what_it_takes_when_it_begins(seconds, monkeypatch, caplog, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can tell
    told = Forecast(1000, 10, 4, 3, 480, 0, 0, seconds, None)
    with caplog.at_level(logging.INFO, "pollard"), meter.Meter(told), meter.Meter(told, shown=False):
        pass
    long = seconds == 60.0
    assert capsys.readouterr().err.count("1,000 weights to 10") == long
    assert caplog.text.count("and about 60 s, 3 passes over all weights") == 2 * long
