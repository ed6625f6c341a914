"""A Sparsifier is a torch optimizer: whatever takes one takes it, and whatever it is put in front of goes on as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

import pollard
from pollard.errors import InvalidInput, LeftDense, SteppedPast, StoreError

X, Y = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))


def begin(name="rigl", made=lambda each: optim.SGD(each, 0.1, momentum=0.9), steps=40, every=4, **options):
    model = network()
    return model, pollard.sparse_training(
        model, made(model.parameters()), name, density=0.3, steps=steps, every=every, **options
    )


def loss_of(model, x=X):
    return nn.functional.cross_entropy(model(x), Y)


def learn(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def same_numbers(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_is_an_optimizer_with_the_groups_and_the_state_of_the_other():
    model, sparse = begin()
    assert isinstance(sparse, optim.Optimizer)
    learn(model, sparse)
    inner = sparse.optimizer
    assert sparse.param_groups is inner.param_groups
    assert sparse.state is inner.state
    assert sparse.defaults is inner.defaults
    assert "momentum_buffer" in sparse.state[model[0].values]
    assert repr(inner) in repr(sparse)
    extra = nn.Parameter(torch.ones(2))
    sparse.add_param_group({"params": [extra], "lr": 0.5})
    assert inner.param_groups[1]["params"] == [extra]
    groups, state, defaults = [dict(group) for group in inner.param_groups], copy.copy(inner.state), {"lr": 1.0}
    sparse.param_groups, sparse.state, sparse.defaults = groups, state, defaults
    assert (inner.param_groups, inner.defaults) == (groups, defaults)
    assert inner.state is state
    sparse.zero_grad()
    assert model[0].values.grad is None


def test_hooks_are_called_at_each_step_and_around_the_state():
    model, sparse = begin()
    seen = []
    sparse.register_step_pre_hook(lambda *_: seen.append("before"))
    sparse.register_step_post_hook(lambda *_: seen.append(sparse.steps))
    learn(model, sparse, 2)
    assert seen == ["before", 1, "before", 2]
    sparse.register_state_dict_pre_hook(lambda _: seen.append("save"))
    sparse.register_state_dict_post_hook(lambda _, state: {**state, "mine": 7})
    sparse.register_load_state_dict_pre_hook(lambda _, state: {key: state[key] for key in state if key != "mine"})
    sparse.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    state = sparse.state_dict()
    assert state["mine"] == 7
    sparse.load_state_dict(state)
    assert seen[-2:] == ["save", "loaded"]


@pytest.mark.parametrize("name", ["set", "rigl", "gmp", "snfs"])
def test_one_state_holds_all_and_goes_on_bit_for_bit(name, tmp_path):
    model, sparse = begin(name)
    learn(model, sparse, 14)
    torch.save({"model": model.state_dict(), "optimizer": sparse.state_dict()}, tmp_path / "half.pt")
    learn(model, sparse, 15)
    again, other = begin(name)
    saved = torch.load(tmp_path / "half.pt")
    assert list(saved["optimizer"]) == ["state", "param_groups", "sparsifier"]
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    learn(again, other, 15)
    assert same_numbers(model, again)
    assert other.metrics() == sparse.metrics()


def test_what_was_saved_apart_is_loaded_apart():
    model, sparse = begin("gmp")
    learn(model, sparse, 14)
    parts = copy.deepcopy((model.state_dict(), sparse.optimizer.state_dict(), sparse.own_state_dict()))
    again, other = begin("gmp")
    for part, state in zip((again, other.optimizer, other), parts, strict=True):
        part.load_state_dict(state)
    for each in ((model, sparse), (again, other)):
        learn(*each, 15)
    assert same_numbers(model, again)


@pytest.mark.parametrize(
    "state_of", [lambda sparse: sparse.optimizer.state_dict(), lambda _: begin("set")[1].state_dict()]
)
def test_a_state_that_is_anothers_changes_nothing(state_of):
    model, sparse = begin()
    learn(model, sparse, 5)
    before = copy.deepcopy(sparse.state_dict())
    foreign = state_of(sparse)
    foreign["param_groups"][0]["lr"] = 7.0
    with pytest.raises(StoreError):
        sparse.load_state_dict(foreign)
    assert sparse.param_groups[0]["lr"] == before["param_groups"][0]["lr"] == 0.1
    assert sparse.steps == 5


SCHEDULERS = {
    "step": lambda each: lr_scheduler.StepLR(each, 5),
    "warm-up": lambda each: lr_scheduler.LambdaLR(each, lambda step: min(1.0, step / 10)),
    "one cycle": lambda each: lr_scheduler.OneCycleLR(each, 0.2, total_steps=24),
    "cyclic": lambda each: lr_scheduler.CyclicLR(each, 0.01, 0.1, step_size_up=4),
    "one after another": lambda each: lr_scheduler.SequentialLR(
        each, [lr_scheduler.ConstantLR(each, 0.5), lr_scheduler.ExponentialLR(each, 0.9)], milestones=[6]
    ),
}


@pytest.mark.parametrize("made", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_schedule_of_the_learning_rate_is_the_same_in_front_and_behind(made):
    (model, sparse), (other, behind) = begin(every=1), begin(every=1)
    schedules = made(sparse), made(behind.optimizer)
    for _ in range(23):
        for one, optimizer, schedule in zip((model, other), (sparse, behind), schedules, strict=True):
            learn(one, optimizer)
            schedule.step()
        assert sparse.param_groups[0]["lr"] == behind.optimizer.param_groups[0]["lr"]
    assert sparse.updates == behind.updates == 23
    assert same_numbers(model, other)


def test_a_plateau_lowers_the_learning_rate():
    model, sparse = begin()
    schedule = lr_scheduler.ReduceLROnPlateau(sparse, patience=0)
    for _ in range(3):
        learn(model, sparse)
        schedule.step(1.0)
    assert sparse.optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_gradient_scaler_skips_what_overflows_and_nothing_counts_it(fused, unscaled):
    (model, sparse), (plain, other) = (begin(made=lambda each: optim.AdamW(each, 0.01, fused=fused)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(24):
        sparse.zero_grad()
        if step in {3, 10}:  # the first would have been an update
            scaler.scale(loss_of(model) * float("inf")).backward()
        else:
            learn(plain, other)
            scaler.scale(loss_of(model)).backward()
        if unscaled:
            scaler.unscale_(sparse)
        steps = sparse.steps
        scaler.step(sparse)
        scaler.update()
        assert sparse.steps == steps + (step not in {3, 10})
    assert (sparse.steps, sparse.updates) == (other.steps, other.updates) == (22, 5)
    assert same_numbers(model, plain)  # scales are powers of two


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    (model, sparse), (other, plain) = begin(), begin()

    def closure():
        sparse.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(9):
        with torch.no_grad():
            assert sparse.step(closure).grad_fn is not None
        learn(other, plain)
    assert same_numbers(model, other)


def test_a_copy_goes_on_by_itself_scheduler_or_not():
    model, sparse = begin()
    lr_scheduler.StepLR(sparse, 5)
    learn(model, sparse, 5)
    twin, other = copy.deepcopy((model, sparse))
    before = copy.deepcopy(model)
    learn(twin, other, 8)
    assert (sparse.steps, other.steps) == (5, 13)
    assert same_numbers(model, before)
    learn(model, sparse, 8)
    assert same_numbers(model, twin)


def test_one_stands_in_front_of_another():
    torch.manual_seed(0)
    model = nn.Sequential(network(), network())
    optimizer = optim.Adam(model.parameters())
    sparse = pollard.set_(model, optimizer, density=0.3, steps=40, every=5, layers="0.*")
    both = pollard.Sparsifier(model, sparse, sparse.method, layers="0.*")
    for _ in range(11):
        both.zero_grad()
        model[0](X).square().mean().backward()
        both.step()
    assert (both.steps, both.updates, sparse.steps, sparse.updates) == (11, 2, 11, 2)


class Skipping(optim.Optimizer):
    """Steps every second time that it is asked, as wrappers do that accumulate."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.asked = inner, 0
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        self.asked += 1
        return self.inner.step(closure) if self.asked % 2 == 0 else None


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("name", ["rigl", "set", "gmp", "top-kast", "mest", "snfs"])
def test_only_steps_that_are_taken_count(name, closed):
    (model, sparse), (plain, other) = (
        begin(name, lambda each: Skipping(optim.Adam(each, 0.01))),
        begin(name, lambda each: optim.Adam(each, 0.01)),
    )
    for call in range(40):
        if call % 2 == 0:
            sparse.zero_grad()
            other.zero_grad()
        part = slice(16 * (call % 2), 16 * (call % 2) + 16)

        def closure(model=model, part=part):
            loss = nn.functional.cross_entropy(model(X[part]), Y[part])
            loss.backward()
            return loss

        nn.functional.cross_entropy(plain(X[part]), Y[part]).backward()
        if call % 2:
            other.step()
        if closed and call % 2:
            sparse.step(closure)
        else:
            closure()
            sparse.step()
        assert sparse.steps == other.steps == (call + 1) // 2
    assert sparse.updates == other.updates > 0
    assert same_numbers(model, plain)


class Sam(optim.Optimizer):
    """Climbs to where the loss is worst near by, and steps by the gradient there; the inner optimizer holds all momentum."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.base_optimizer = optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure):
        here = [(each, each.clone()) for each in self.param_groups[0]["params"] if each.grad is not None]
        for parameter, _ in here:
            parameter.add_(parameter.grad, alpha=0.05)
        self.zero_grad()
        loss = torch.enable_grad()(closure)()
        for parameter, before in here:
            parameter.copy_(before)
        self.base_optimizer.step()
        return loss


class Lookahead(optim.Optimizer):
    """Slow weights beside the fast ones, both in their own optimizer's state."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.fast = [optim.Adam(self.param_groups, lr=0.01)]
        self.taken = 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.fast[0].step(closure)
        self.taken += 1
        for parameter in self.param_groups[0]["params"]:
            slow = self.state[parameter].setdefault("slow", parameter.clone())
            if self.taken % 3 == 0:
                slow += 0.5 * (parameter - slow)
                parameter.copy_(slow)
        return loss


@pytest.mark.parametrize("made", [Sam, Lookahead])
@pytest.mark.parametrize("name", ["rigl", "set", "gmp"])
def test_the_state_of_an_inner_optimizer_moves_along(made, name):
    trained = []
    for storage in ("compressed", "masked"):
        model, sparse = begin(name, made, storage=storage)
        model.double()
        for _ in range(13):
            sparse.zero_grad()
            nn.functional.cross_entropy(model(X.double()), Y).backward()
            sparse.step(lambda model=model: nn.functional.cross_entropy(model(X.double()), Y).backward())
        assert sparse.updates == 3
        trained.append(pollard.densify_(model))
    torch.testing.assert_close(trained[0].state_dict(), trained[1].state_dict())


class Hidden(optim.SGD):
    """Keeps slow weights in a list, where nothing says which parameter they are of."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.slow = [[parameter.detach().clone() for parameter in group["params"]] for group in self.param_groups]
        return loss


def test_state_that_cannot_be_followed_is_refused_before_anything_moves():
    model, sparse = begin(made=lambda each: Hidden(each, 0.1))
    learn(model, sparse, 3)
    before = copy.deepcopy(model)
    with pytest.raises(InvalidInput, match=r"Hidden\.slow"):
        learn(model, sparse)
    assert same_numbers(model, before)


def test_the_optimizer_of_another_network_is_refused():
    model, _ = begin()
    with pytest.raises(InvalidInput, match="without the weight of layer '0'"):
        pollard.rigl(model, optim.SGD(network().parameters(), 0.1), density=0.3, steps=40)


def test_a_bare_optimizer_that_is_stepped_while_a_method_waits_is_told_once():
    model, sparse = begin()
    learn(model, sparse.optimizer)
    with pytest.warns(SteppedPast, match="rigl waits"):
        learn(model, sparse.optimizer)
    learn(model, sparse.optimizer, 5)


def test_each_part_of_a_network_can_have_a_sparsifier_of_its_own():
    model = nn.ModuleDict({"actor": network(), "critic": network()})
    made = {
        name: pollard.rigl(model, optim.SGD(part.parameters(), 0.1), density=0.2, steps=40, layers=f"{name}*")
        for name, part in model.items()
    }
    assert [list(sparse.weights) for sparse in made.values()] == [["actor.0", "actor.2"], ["critic.0", "critic.2"]]


def test_layers_left_dense_are_told_unless_layers_are_named():
    model = nn.Sequential(pollard.nn.SparseLinear.random(16, 40, 0.3), nn.Linear(40, 4))
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.warns(LeftDense, match="'1' stay dense"):
        pollard.rigl(model, optimizer, density=0.3, steps=40)
    assert list(pollard.rigl(model, optimizer, density=0.3, steps=40, layers="0").weights) == ["0"]
    assert list(pollard.rigl(model, optimizer, density=0.3, steps=40, layers="1").weights) == ["1"]
