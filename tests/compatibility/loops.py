"""What people do around a step: scaling, clipping, accumulation, checkpointing, frozen parts, hooks."""

from __future__ import annotations

import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pollard
from compatibility.piece import piece
from compatibility.trial import (
    EVERY,
    STEPS,
    UPDATES,
    Training,
    batch,
    network,
    ordinary,
    require_ordinary,
    require_weights,
    sgd,
    weights,
)

FAMILY = "Loops"


@piece(FAMILY, "GradScaler")
def _(method):
    training = Training(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        training.sparse.zero_grad()
        scaler.scale(training.loss(step)).backward()
        scaler.step(training.sparse)
        scaler.update()
    require_ordinary(training)


@piece(FAMILY, "GradScaler, a step skipped for its infinities")
def _(method):
    training = Training(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS + 1):
        training.sparse.zero_grad()
        # The third step overflows: nothing may move, and the step does not count.
        loss = training.loss(step - (step > 2)) * (torch.inf if step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(training.sparse)
        scaler.update()
    require_ordinary(training)


@piece(FAMILY, "autocast to bfloat16", note="products in bfloat16, values and their gradients in float32")
def _(method):
    under, without = (Training(method) for _ in range(2))
    for step in range(STEPS):
        under.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = under.loss(step)
        loss.backward()
        assert all(each.grad.dtype is torch.float32 for each in under.model.parameters())
        under.sparse.step()
        torch.testing.assert_close(loss, without.loss(step).detach(), rtol=0.02, atol=0.0)
        without.backward(step)
        without.sparse.step()
    assert under.sparse.updates == UPDATES[method]


@piece(FAMILY, "`clip_grad_norm_`, `clip_grad_value_`")
def _(method):
    pair = Training(method), Training(method, storage="masked")
    for each in pair:
        for step in range(STEPS):
            each.backward(step)
            norm = nn.utils.clip_grad_norm_(each.model.parameters(), 0.5)
            assert norm > 0
            nn.utils.clip_grad_value_(each.model.parameters(), 0.1)
            each.sparse.step()
    require_weights(pair[0].model, weights(pair[1].model))
    assert not torch.equal(weights(pair[0].model)["0.weight"], ordinary(method)["0.weight"])


@piece(FAMILY, "gradient accumulation")
def _(method):
    training = Training(method)
    for step in range(STEPS):
        x, y = batch(step)
        training.optimizer.zero_grad()
        for half in (slice(0, 8), slice(8, 16)):
            (F.cross_entropy(training.model(x[half]), y[half]) / 2).backward()
        training.sparse.step()
    require_ordinary(training)


@piece(FAMILY, "`zero_grad(set_to_none=False)`")
def _(method):
    training = Training(method)
    for step in range(STEPS):
        training.optimizer.zero_grad(set_to_none=False)
        training.loss(step).backward()
        training.sparse.step()
    require_ordinary(training)


@piece(FAMILY, "activation checkpointing: both kinds, and `checkpoint_sequential`")
def _(method):
    for around in (
        lambda model, x: checkpoint(model, x, use_reentrant=False),
        lambda model, x: checkpoint(model, x.clone().requires_grad_(), use_reentrant=True),
        lambda model, x: checkpoint_sequential(model, 2, x.clone().requires_grad_(), use_reentrant=False),
    ):
        training = Training(method)
        training.go(called=lambda x, training=training, around=around: around(training.model, x))
        require_ordinary(training)


@piece(FAMILY, "in-place activations")
def _(method):
    require_ordinary(Training(method, model=network(inplace=True)).go())


@piece(
    FAMILY,
    "anomaly mode, deterministic algorithms, `saved_tensors_hooks`",
    ignored=((r"Anomaly Detection has been enabled", UserWarning),),
)
def _(method):
    training = Training(method)
    torch.use_deterministic_algorithms(True)
    try:
        packing = torch.autograd.graph.saved_tensors_hooks(lambda each: each.detach().clone(), lambda each: each)
        with torch.autograd.detect_anomaly(), packing:
            training.go()
    finally:
        torch.use_deterministic_algorithms(False)
    require_ordinary(training)


@piece(FAMILY, "two optimizers, one of them for the sparse layers: `layers=`")
def _(method):
    ends = []
    for storage in ("compressed", "masked"):
        model = network()
        own, rest = sgd(model[:4].parameters()), optim.Adam(model[4:].parameters(), 0.01)
        options = {} if method == "static" else {"every": EVERY}
        sparse = pollard.sparse_training(
            model, own, method, density=0.3, steps=STEPS, layers=["0", "2"], storage=storage, **options
        )
        for step in range(STEPS):
            x, y = batch(step)
            own.zero_grad()
            rest.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sparse.step()
            rest.step()
        assert isinstance(model[4], nn.Linear)
        assert sparse.updates == UPDATES[method]
        ends.append(weights(model))
    torch.testing.assert_close(*ends)


@piece(FAMILY, "gradient penalty, by `create_graph=True`")
def _(method):
    pair = Training(method), Training(method, storage="masked")
    for each in pair:
        for step in range(STEPS):
            x = batch(step)[0].clone().requires_grad_()
            each.optimizer.zero_grad()
            loss = F.cross_entropy(each.model(x), batch(step)[1])
            [slope] = torch.autograd.grad(loss, x, create_graph=True)
            (loss + slope.square().sum()).backward()
            each.sparse.step()
    require_weights(pair[0].model, weights(pair[1].model))


@piece(FAMILY, "adversarial examples, made by `autograd.grad` within the step")
def _(method):
    pair = Training(method), Training(method, storage="masked")
    for each in pair:
        for step in range(STEPS):
            x, y = batch(step)
            lead = x.clone().requires_grad_()
            [slope] = torch.autograd.grad(F.cross_entropy(each.model(lead), y), lead)
            each.optimizer.zero_grad()
            F.cross_entropy(each.model(x + 0.1 * slope.sign()), y).backward()
            each.sparse.step()
    require_weights(pair[0].model, weights(pair[1].model))


class Wrapper(optim.Optimizer):
    """An optimizer around another, as SAM and Lookahead are."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.inner = sgd(self.param_groups)
        self.param_groups = self.inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


@piece(FAMILY, "an optimizer around another, as SAM and Lookahead are")
def _(method):
    require_ordinary(Training(method, Wrapper).go())


@piece(FAMILY, "frozen layers, `requires_grad_(False)`")
def _(method):
    pair = []
    for storage in ("compressed", "masked"):
        model = network()
        model[2].requires_grad_(False)
        pair.append(Training(method, model=model, storage=storage).go())
    require_weights(pair[0].model, weights(pair[1].model))
    assert (weights(pair[0].model)["2.weight"] != 0).any()


class Mixture(nn.Module):
    """Each batch goes to one of two experts: the other one sees nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(12, 24) for _ in range(2))
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.experts[int(x.sum() > 0)](x).relu())


@piece(FAMILY, "a mixture with an expert that sees no samples of a step")
def _(method):
    pair = [Training(method, model=Mixture(), storage=storage).go() for storage in ("compressed", "masked")]
    assert pair[0].sparse.updates == UPDATES[method]
    require_weights(pair[0].model, weights(pair[1].model))


@piece(
    FAMILY,
    "a whole step under `torch.compile`: forward, backward, the Sparsifier's step",
    ignored=(
        (r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed", UserWarning),
        (r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),
    ),
)
def _(method):
    torch.compiler.reset()
    training = Training(method)
    step = torch.compile(lambda number: training.go([number]), backend="eager")
    for number in range(STEPS):
        step(number)
    require_ordinary(training)


def stepping_while_backward(method, storage):
    """A network of which each weight has an optimizer of its own, stepped by a hook."""
    model = network()
    options = {} if method == "static" else {"every": EVERY}
    owners = []
    for name in ("0", "2", "4"):
        own = sgd([model.get_submodule(name).weight])
        owners.append(
            pollard.sparse_training(
                model, own, method, density=0.3, steps=STEPS, layers=[name], storage=storage, **options
            )
        )

        def step(_, sparse=owners[-1]):
            sparse.step()
            sparse.zero_grad()

        own.param_groups[0]["params"][0].register_post_accumulate_grad_hook(step)
    for number in range(STEPS):
        x, y = batch(number)
        F.cross_entropy(model(x), y).backward()
    assert [sparse.updates for sparse in owners] == [UPDATES[method]] * 3
    return weights(model)


@piece(FAMILY, "an optimizer a weight, stepped by a hook while the backward pass goes on")
def _(method):
    torch.testing.assert_close(*[stepping_while_backward(method, each) for each in ("compressed", "masked")])
