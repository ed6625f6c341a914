"""Models of any signature: tuples and dicts in, tuples, dicts and dataclasses out, for every criterion."""

from __future__ import annotations

import warnings
from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from networks import BATCH, generator, same
from pollard.errors import InvalidInput
from pollard.pruning import CRITERIA, measure_aims, prune
from pollard.pruning.batches import joined, spliced, tensors
from pollard.pruning.scoring import Scoring

X, Y = BATCH


class Outputs(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(12, 10), nn.Linear(10, 4), nn.Linear(10, 2)

    def parts(self, x):
        hidden = self.first(x).relu()
        return self.left(hidden), self.right(hidden)


class Plain(Body):
    """One output, which holds both: what all others are compared with."""

    def forward(self, x):
        return torch.cat(self.parts(x), 1)


class Tupled(Body):
    def forward(self, a, b):
        return self.parts(torch.cat([a, b], 1))


class Named(Body):
    def forward(self, b, a, training=None):
        left, right = self.parts(torch.cat([a, b], 1))
        return {"logits": left, "more": {"hidden": right}, "count": 3, "none": None}


class Typed(Body):
    def forward(self, x):
        return Outputs(*self.parts(x))


def loss_of(left, right, targets):
    return functional.cross_entropy(left, targets) + right.square().mean()


A, B = X[:, :5], X[:, 5:]
SHAPES = {
    "a tuple": (Tupled, ((A, B), Y), lambda out, t: loss_of(*out, t)),
    "a list": (Tupled, ([A, B], Y), lambda out, t: loss_of(*out, t)),
    "a dict": (
        Named,
        ({"a": A, "b": B}, {"y": Y}),
        lambda out, t: loss_of(out["logits"], out["more"]["hidden"], t["y"]),
    ),
    "a mapping": (Named, (UserDict(a=A, b=B), Y), lambda out, t: loss_of(out["logits"], out["more"]["hidden"], t)),
    "a named tuple": (Typed, (X, (Y, Y)), lambda out, t: loss_of(out.logits, out.hidden, t[0])),
    "a series": (Tupled, [((A, B), (Y, Y))], lambda out, t: loss_of(*out, t[1])),
}


@pytest.mark.parametrize("chunk_size", [None, 16])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_criterion_takes_what_the_model_takes(kind, criterion, chunk_size):
    if chunk_size and kind not in {"a dict", "a named tuple"}:
        return
    model, batch, loss_fn = SHAPES[kind]
    options = {
        "rounds": min(3, CRITERIA[criterion].rounds),
        "scoring": Scoring(chunk_size=chunk_size),
        "allocation": "uniform",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = prune(model(), criterion, 0.4, batch, loss_fn, generator=generator(), **options)
        expected = prune(
            Plain(),
            criterion,
            0.4,
            BATCH,
            lambda out, t: loss_of(out[:, :4], out[:, 4:], t),
            generator=generator(),
            **options,
        )
    if criterion == "ntk-sap" and model is not Typed:  # draws an input for each part of them
        assert found.nnz == expected.nnz
        return
    assert same(found, expected)


@pytest.mark.parametrize("kind", SHAPES)
def test_both_aims_are_measured_alike(kind):
    model, batch, loss_fn = SHAPES[kind]
    plan = prune(model(), "magnitude", 0.4)
    found = measure_aims(model(), plan, batch, loss_fn=loss_fn)
    expected = measure_aims(Plain(), plan, BATCH, loss_fn=lambda out, t: loss_of(out[:, :4], out[:, 4:], t))
    for name in ("loss", "loss_before", "first_order", "second_order", "gradient_norm", "singular_value", "ntk_trace"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4), name


def test_outputs_that_are_not_one_thing_a_sample_cannot_be_joined():
    assert joined([{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(2.0)}], [1, 1]) is None
    assert joined([(torch.ones(2), 1), (torch.ones(1), 2)], [2, 1]) is None
    assert joined([(torch.ones(2),), [torch.ones(1)]], [2, 1]) is None
    whole = joined([(torch.zeros(2), None), (torch.ones(1), None)], [2, 1])
    assert spliced(whole, (torch.full((2,), 5.0), None), 0)[0].tolist() == [5.0, 5.0, 1.0]
    assert len(tensors(whole)) == 1


def test_a_loss_that_the_model_gives_itself_is_served_whole_and_refused_in_chunks():
    class Own(Body):
        def forward(self, x, y):
            left, right = self.parts(x)
            return {"loss": loss_of(left, right, y), "logits": left}

    batch = {"x": X, "y": Y}, Y
    own = prune(Own(), "snip", 0.4, batch, lambda out, _: out["loss"])
    assert same(own, prune(Plain(), "snip", 0.4, BATCH, lambda out, t: loss_of(out[:, :4], out[:, 4:], t)))
    with pytest.raises(InvalidInput, match="Leave chunk_size= out"):
        prune(Own(), "snip", 0.4, batch, lambda out, _: out["loss"], scoring=Scoring(chunk_size=8))


def test_lengths_that_differ_within_inputs_are_refused():
    with pytest.raises(InvalidInput, match=r"inputs of shape \(40, 5\), \(39, 7\) with targets of shape \(40,\)"):
        prune(Tupled(), "snip", 0.4, ((A, B[:39]), Y), lambda out, t: loss_of(*out, t))
