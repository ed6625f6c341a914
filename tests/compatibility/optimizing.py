"""Optimizers, their groups and their schedulers."""

from __future__ import annotations

import copy

import torch
from torch import nn, optim

from compatibility.piece import Refused, piece
from compatibility.trial import (
    STEPS,
    UPDATES,
    Training,
    require_ordinary,
    require_weights,
    sgd,
    weights,
)

FAMILY = "Optimizers"
MOVING = ("rigl", "set", "gmp")


def follows(method, make):
    require_ordinary(Training(method, make).go(), make)


def sgd_fused(parameters):
    return optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, fused=True)


@piece(FAMILY, "SGD: plain, `foreach`, `fused`")
def _(method):
    follows(method, sgd)
    follows(method, sgd_fused)
    follows(method, sgd_foreach)


def sgd_foreach(parameters):
    return optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True)


def adam_fused(parameters):
    return optim.Adam(parameters, lr=0.01, fused=True)


def adamw_foreach(parameters):
    return optim.AdamW(parameters, lr=0.01, foreach=True, amsgrad=True)


@piece(FAMILY, "Adam, AdamW: `foreach`, `fused`, `amsgrad`")
def _(method):
    follows(method, adam_fused)
    follows(method, adamw_foreach)


OTHERS = [
    lambda parameters, kind=kind: kind(parameters, lr=0.01)
    for kind in (
        optim.Adadelta,
        optim.Adagrad,
        optim.Adamax,
        optim.ASGD,
        optim.NAdam,
        optim.RAdam,
        optim.RMSprop,
        optim.Rprop,
    )
]


@piece(FAMILY, "Adadelta, Adagrad, Adamax, ASGD, NAdam, RAdam, RMSprop, Rprop")
def _(method):
    for make in OTHERS:
        follows(method, make)


def lbfgs(parameters):
    return optim.LBFGS(parameters, lr=0.1, max_iter=2)


@piece(
    FAMILY,
    "LBFGS",
    refused=dict.fromkeys(MOVING, Refused("LBFGS with state of all weights", "its state is of all weights together")),
)
def _(method):
    training, twin = (Training(method, lbfgs, storage=storage) for storage in ("compressed", "masked"))
    for each in (training, twin):
        for step in range(STEPS):

            def closure(each=each, step=step):
                each.backward(step)
                return each.loss(step)

            each.sparse.step(closure)
    require_weights(training.model, weights(twin.model))


@piece(FAMILY, "Adafactor", note="a sparse layer's values are one row, so nothing is factored")
def _(method):
    # The slow twin's weight would be factored. Every step is held against a vector of the same numbers instead.
    training = Training(method, lambda parameters: optim.Adafactor(parameters, lr=0.05))
    first = training.model[0].topology
    for step in range(STEPS):
        values = training.model[0].values
        alone = nn.Parameter(values.detach().clone())
        single = optim.Adafactor([alone], lr=0.05)
        if training.optimizer.state.get(values):
            single.state[alone] = copy.deepcopy(training.optimizer.state[values])
        updates = training.sparse.updates
        training.backward(step)
        alone.grad = values.grad.clone()
        training.sparse.step()
        if training.sparse.updates == updates:
            single.step()
            torch.testing.assert_close(training.model[0].values, alone)
            assert training.optimizer.state[values]["variance"].shape == values.shape
    assert training.sparse.updates == UPDATES[method]
    assert training.model[0].topology.same_as(first) == (method == "static")


def sparse_adam(parameters):
    return optim.SparseAdam(list(parameters), lr=0.01)


@piece(
    FAMILY,
    "SparseAdam",
    refused=Refused(
        "does not support dense gradients",
        "it wants gradients that are torch's sparse tensors: Adam instead",
        by=RuntimeError,
    ),
)
def _(method):
    Training(method, sparse_adam).go()


def muon(parameters):
    return optim.Muon([parameter for parameter in parameters if parameter.dim() == 2], lr=0.01)


@piece(
    FAMILY,
    "Muon",
    refused=Refused("2D matrix", "it orthogonalises matrices, and kept values are a vector", by=ValueError),
)
def _(method):
    Training(method, muon).go()


@piece(FAMILY, "parameter groups, weight decay on weights only")
def _(method):
    def grouped(parameters):
        parameters = list(parameters)
        return optim.AdamW(
            [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "lr": 0.001}], lr=0.01
        )

    follows(method, grouped)


@piece(FAMILY, "learning-rate schedulers on what `pollard.rigl(...)` returns: OneCycleLR, ReduceLROnPlateau, LambdaLR")
def _(method):
    for schedule in (
        lambda each: optim.lr_scheduler.OneCycleLR(each, max_lr=0.2, total_steps=STEPS + 1),
        lambda each: optim.lr_scheduler.LambdaLR(each, lambda count: 0.8**count),
        _Plateau,
    ):
        training, twin = Training(method), Training(method, storage="masked")
        for each, stepped in ((training, training.sparse), (twin, twin.optimizer)):
            scheduler = schedule(stepped)
            for step in range(STEPS):
                each.go([step])
                scheduler.step()
        assert training.optimizer.param_groups[0]["lr"] == twin.optimizer.param_groups[0]["lr"] != 0.1
        require_weights(training.model, weights(twin.model))


class _Plateau(optim.lr_scheduler.ReduceLROnPlateau):
    def __init__(self, optimizer):
        super().__init__(optimizer, patience=1)

    def step(self):
        super().step(1.0)
