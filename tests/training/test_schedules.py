"""Learning rates: end points, monotone stretches, no surprises beyond the end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
