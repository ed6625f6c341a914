"""Stochastic rounding: right on average, exact where it can be, repeatable, and of a single parameter at a time."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop

from pollard.errors import InvalidInput
from pollard.nn import SparseLinear
from pollard.training import TrainingOptions, generator, make_optimizer, rounding
from pollard.training.methods import METHODS
from pollard.training.rounding import StochasticRounding
from pollard.training.sparsifier import Sparsifier

OPTIMIZERS = [
    lambda p: SGD(p, 0.1),
    lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda p: Adam(p, 0.01, amsgrad=True),
    lambda p: AdamW(p, 0.01, fused=True),
    Adadelta, Adagrad, Adamax, NAdam, RAdam, RMSprop, Rprop,
]  # fmt: skip


def made(name, *shape):
    return torch.randn(*shape, generator=generator(0, name))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_float32_parameters_are_stepped_as_without_it(make):
    ours, theirs = (nn.Parameter(made("weight", 40)) for _ in range(2))
    wrapped, plain = StochasticRounding(make([ours])), make([theirs])
    for step in range(3):
        ours.grad, theirs.grad = made(f"{step}", 40), made(f"{step}", 40)
        wrapped.step()
        plain.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_bfloat16_follows_float32_and_is_all_that_is_held(make):
    narrow, wide = nn.Parameter(made("weight", 400).to(torch.bfloat16)), nn.Parameter(made("weight", 400))
    wrapped, plain = StochasticRounding(make([narrow])), make([wide])
    for step in range(20):
        gradient = made(f"{step}", 400).to(torch.bfloat16)
        narrow.grad, wide.grad = gradient, gradient.float()
        wrapped.step()
        plain.step()
    assert narrow.dtype is torch.bfloat16
    assert {entry.dtype for entry in wrapped.state[narrow].values() if entry.dim()} <= {torch.bfloat16}
    assert (narrow.float() - wide).abs().mean() < 0.02
    assert wrapped.inner.param_groups == []


def test_small_parameters_are_stepped_at_once_and_large_ones_in_parts(monkeypatch):
    monkeypatch.setattr(rounding, "TOGETHER", 100)
    sizes = (30, 40, 0, 50, 300, 20, 7)
    narrow = [nn.Parameter(made(f"{place}", size).to(torch.bfloat16)) for place, size in enumerate(sizes)]
    wide = [nn.Parameter(each.detach().float()) for each in narrow]
    narrow.append(nn.Parameter(made("float32", 12)))
    wide.append(nn.Parameter(narrow[-1].detach().clone()))
    unmoved = nn.Parameter(made("unmoved", 9).to(torch.bfloat16))
    wrapped, plain = StochasticRounding(Adam([narrow[0], unmoved, *narrow[1:]], 0.05)), Adam(wide, 0.05)
    stepped = []
    inner = wrapped.inner.step
    monkeypatch.setattr(
        wrapped.inner,
        "step",
        lambda: (stepped.append([p.numel() for p in wrapped.inner.param_groups[0]["params"]]), inner()),
    )
    for step in range(10):
        for place, (ours, theirs) in enumerate(zip(narrow, wide, strict=True)):
            ours.grad = made(f"{step} {place}", *ours.shape).to(ours.dtype)
            theirs.grad = ours.grad.float()
        wrapped.step()
        plain.step()
    assert stepped[:7] == [[30, 40, 0], [50], [100], [100], [100], [20, 7], [12]]
    assert unmoved not in wrapped.state
    for ours, theirs in zip(narrow, wide, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.03, atol=0.03)
        for entry in (ours, wrapped.state[ours]["exp_avg"]):
            assert (entry.dtype, entry.shape) == (ours.dtype, ours.shape)
            assert entry.untyped_storage().nbytes() == entry.nbytes
    assert torch.equal(narrow[-1], wide[-1])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_in_parts_a_parameter_is_stepped_as_it_is_whole(monkeypatch, make):
    # To nearest: random bits are others where parts are.
    monkeypatch.setattr(rounding, "round_stochastically", lambda x, seed: x.to(torch.bfloat16))
    found = []
    for together in (1 << 20, 64):
        monkeypatch.setattr(rounding, "TOGETHER", together)
        weight = nn.Parameter(made("weight", 20, 15).to(torch.bfloat16))
        optimizer = StochasticRounding(make([weight]))
        for step in range(4):
            weight.grad = made(f"{step}", 20, 15).to(torch.bfloat16)
            optimizer.step()
        found.append((weight, optimizer.state[weight]))
    (whole, state), (parts, other) = found
    assert torch.equal(whole, parts)
    assert list(state) == list(other)
    for key, entry in state.items():
        if isinstance(entry, torch.Tensor):
            assert (entry.dtype, entry.shape) == (other[key].dtype, other[key].shape)
            assert torch.equal(entry, other[key])
        else:
            assert entry == other[key]


def test_no_float32_copy_of_a_large_parameter_is_held(monkeypatch):
    monkeypatch.setattr(rounding, "TOGETHER", 1 << 12)
    weight = nn.Parameter(made("weight", 1 << 20).to(torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = StochasticRounding(Adam([weight], fused=True))
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
    allocated = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(itertools.accumulate(allocated)) < weight.nbytes / 8


def test_an_optimizer_that_looks_at_a_whole_parameter_is_given_it(monkeypatch):
    monkeypatch.setattr(rounding, "TOGETHER", 16)
    narrow, wide = nn.Parameter(made("weight", 30, 20).to(torch.bfloat16)), nn.Parameter(made("weight", 30, 20))
    ours, theirs = StochasticRounding(Adafactor([narrow], 0.05)), Adafactor([wide], 0.05)
    for step in range(5):
        narrow.grad = made(f"{step}", 30, 20).to(torch.bfloat16)
        wide.grad = narrow.grad.float()
        ours.step()
        theirs.step()
    torch.testing.assert_close(narrow.float(), wide, rtol=0.03, atol=0.03)
    assert ours.state[narrow]["row_var"].shape == (30, 1)


def test_strided_parameters_are_stepped_whole(monkeypatch):
    monkeypatch.setattr(rounding, "TOGETHER", 16)
    narrow = nn.Parameter(made("weight", 30, 20).to(torch.bfloat16).t())
    narrow.grad = torch.ones_like(narrow)
    before = narrow.detach().float()
    StochasticRounding(SGD([narrow], 1.0)).step()
    torch.testing.assert_close(narrow.float(), before - 1, rtol=0.01, atol=0.01)


def test_updates_and_decay_that_rounding_to_nearest_loses_are_kept():
    weights = [nn.Parameter(torch.ones(2000, dtype=torch.bfloat16)) for _ in range(2)]
    plain = SGD(weights[:1], 0.1, weight_decay=1e-3)
    ours = StochasticRounding(SGD(weights[1:], 0.1, weight_decay=1e-3))
    for _ in range(1000):
        for weight, optimizer in zip(weights, (plain, ours), strict=True):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
    assert (weights[0] == 1).all()
    assert weights[1].float().mean().item() == pytest.approx(math.exp(-0.1), abs=2e-3)


def test_it_goes_on_from_its_state_to_the_bit_and_copies_go_their_own_way():
    def begin(weight):
        return StochasticRounding(Adam([weight], 0.01), seed=3)

    def step(weight, optimizer, number):
        weight.grad = made(f"{number}", 300).to(torch.bfloat16)
        optimizer.step()

    whole = nn.Parameter(made("weight", 300).to(torch.bfloat16))
    optimizer = begin(whole)
    for number in range(3):
        step(whole, optimizer, number)
    resumed = nn.Parameter(whole.detach().clone())
    other = begin(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied = copy.deepcopy(optimizer)
    [third] = copied.param_groups[0]["params"]
    for number in range(3, 6):
        step(whole, optimizer, number)
        step(resumed, other, number)
        step(third, copied, number)
    assert torch.equal(whole, resumed)
    assert torch.equal(whole, third)
    another = StochasticRounding(Adam([nn.Parameter(resumed.detach().clone())], 0.01), seed=4)
    another.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(another.param_groups[0]["params"][0], another, 6)
    step(whole, optimizer, 6)
    assert not torch.equal(whole, another.param_groups[0]["params"][0])


def test_schedulers_and_closures_work_as_usual():
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = StochasticRounding(SGD([weight], 1.0))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 8
    schedule.step()
    assert optimizer.step(closure).item() == 0
    assert weight.tolist() == [-0.5] * 8


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_moves_its_state(name):
    model = nn.Sequential(
        SparseLinear.random(32, 24, 0.5, generator=generator(0, "a")), nn.ReLU(),
        SparseLinear.random(24, 4, 0.5, generator=generator(0, "b")),
    ).to(torch.bfloat16)  # fmt: skip
    optimizer = make_optimizer(model, TrainingOptions(precision="bfloat16"))
    options = {} if name in ("static", "dsd") else {"every": 3}
    sparsifier = Sparsifier(model, optimizer, METHODS[name](0.3, 30, **options))
    for step in range(12):
        optimizer.zero_grad()
        model(made(f"{step}", 20, 32).to(torch.bfloat16)).float().square().mean().backward()
        sparsifier.step()
    assert sparsifier.updates > 0 or name in ("static", "dsd")
    for layer in (model[0], model[2]):
        held = optimizer.state[layer.values]["momentum_buffer"]
        assert (held.dtype, held.shape) == (torch.bfloat16, layer.values.shape)


def test_an_optimizer_of_all_parameters_together_is_refused():
    with pytest.raises(InvalidInput, match="each parameter by itself"):
        StochasticRounding(LBFGS([nn.Parameter(torch.ones(2))]))
