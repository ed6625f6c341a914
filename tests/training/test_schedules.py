"""Learning rates: end points, monotone stretches, no surprises beyond the end."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pollard.errors import InvalidInput
from pollard.training import TrainingOptions, schedules


@settings(deadline=None)
@given(st.integers(2, 400), st.floats(1e-4, 10.0))
def test_cosine_is_torchs(steps, lr):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ours = schedules.cosine(lr, steps)
    for step in range(min(steps, 20)):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        theirs.step()


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(1e-4, 10.0))
def test_one_cycle_rises_to_the_peak_then_falls_to_almost_nothing(steps, peak):
    rates = [schedules.one_cycle(peak, steps)(step) for step in range(steps + 1)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= peak * (1 + 1e-12)
    assert rates[-1] == pytest.approx(peak / 250_000)


@given(st.sampled_from(["constant", "step", "cosine", "one-cycle"]), st.integers(1, 50), st.integers(1, 9))
def test_every_schedule_is_positive_within_the_run_and_warms_up(name, steps, warmup):
    plain = TrainingOptions(schedule=name, lr=0.5).learning_rate(steps)
    warmed = TrainingOptions(schedule=name, lr=0.5, warmup=warmup).learning_rate(steps)
    for step in range(steps):
        assert 0 < plain(step) <= 0.5
        assert warmed(step) == pytest.approx(plain(step) * min(1, (step + 1) / warmup))


def test_step_decays_at_thirds_unless_told():
    rate = TrainingOptions(schedule="step", lr=1.0).learning_rate(9)
    assert [rate(step) for step in (0, 2, 3, 6, 8)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    rate = TrainingOptions(schedule="step", lr=1.0, decay_every=2, decay_factor=0.5).learning_rate(9)
    assert [rate(step) for step in (0, 2, 4)] == [1, 0.5, 0.25]


@given(st.integers(1, 1000), st.floats(0.01, 0.99), st.data())
def test_the_cubic_is_the_published_one_in_sparsities(steps, final, data):
    step = data.draw(st.integers(0, steps))
    published = final + (0.0 - final) * (1 - step / steps) ** 3
    assert 1 - schedules.cubic(1.0, steps, end=1 - final)(step) == pytest.approx(published, abs=1e-12)


@given(st.integers(1, 1000), st.floats(0.01, 0.99), st.data())
def test_the_sigmoid_is_the_published_one_in_sparsities(steps, final, data):
    p = data.draw(st.integers(0, steps)) / steps
    published = final * (1 + math.exp(-14 + 6)) / (1 + math.exp(-14 * p + 6))
    assert 1 - schedules.sigmoid(1.0, steps, end=1 - final)(round(p * steps)) == pytest.approx(published, abs=1e-12)


@given(st.integers(1, 1000), st.floats(0.01, 1.0), st.data())
def test_the_fraction_of_rigl_is_the_published_one(steps, fraction, data):
    step = data.draw(st.integers(0, steps))
    published = fraction / 2 * (1 + math.cos(math.pi * step / steps))
    assert schedules.cosine(fraction, steps)(step) == pytest.approx(published, abs=1e-12)


@given(
    st.sampled_from(["linear", "cubic", "cosine", "exponential", "one-cycle"]),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
    st.integers(0, 60),
)
def test_what_goes_from_one_number_to_another_never_turns_back(name, start, end, steps):
    schedule = schedules.between(name, start, steps, end)
    numbers = [schedule(step) for step in range(steps + 3)]
    slack = 1e-12
    assert all((later - earlier) * (end - start) >= -slack for earlier, later in pairwise(numbers))
    assert all(min(start, end) - slack <= number <= max(start, end) + slack for number in numbers)
    assert numbers[steps:] == pytest.approx([end] * 3)
    if steps and name != "one-cycle":  # which begins a little on its way
        assert numbers[0] == pytest.approx(start)


@given(st.dictionaries(st.integers(0, 40), st.floats(0, 1), min_size=1), st.integers(0, 50))
def test_piecewise_holds_each_number_until_the_next(points, step):
    passed = [each for each in points if each <= step]
    assert schedules.piecewise(points)(step) == points[max(passed) if passed else min(points)]


@given(st.integers(1, 20), st.integers(0, 100), st.integers(0, 30))
def test_cyclic_repeats_and_delayed_waits(every, step, first):
    plain = schedules.linear(1.0, 7, end=0.2)
    assert schedules.cyclic(plain, every)(step) == plain(step % every)
    assert schedules.delayed(plain, first)(step) == plain(max(0, step - first))


@pytest.mark.parametrize(
    "made, named",
    [
        (lambda: schedules.exponential(1.0, 5, 0.0), "0"),
        (lambda: schedules.piecewise({}), "no points"),
        (lambda: schedules.between("quintic", 1.0, 5, 0.0), "quintic"),
    ],
)
def test_a_schedule_that_cannot_be_says_so(made, named):
    with pytest.raises(InvalidInput, match=named):
        made()


@pytest.mark.parametrize("name", sorted(schedules.SHAPES))
def test_a_schedule_can_be_pickled(name):
    inner = schedules.between(name, 0.9, 8, 0.1)
    for ours in (inner, schedules.warmed_up(schedules.delayed(schedules.cyclic(inner, 5), 2), 3)):
        again = pickle.loads(pickle.dumps(ours))
        assert [again(step) for step in range(12)] == [ours(step) for step in range(12)]
