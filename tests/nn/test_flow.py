"""Who reads what in a model, as far as it can be seen without data."""

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput
from pollard.nn.flow import Flow, is_hooked


class Branching(nn.Module):
    """One layer that two read, one that is called twice, and one whose bias is read past it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(2, 2) for _ in range(4))
        self.same = nn.Identity()

    def forward(self, x):
        y = self.a(x)
        return self.c(self.same(self.b(y))) + self.d(y) + self.d(x) * self.b.bias


def test_readers_are_modules_that_alone_read_one_that_is_called_once():
    model = Branching()
    flow = Flow.of(model)
    assert flow.reader(model.a) is None
    assert flow.reader(model.b) is model.c
    assert flow.reader(model.c) is None
    assert flow.reader(model.d) is None
    assert [call.source for call in flow.calls[model.d]] == [model.a, None]
    assert flow.calls[model.a][0].readers == (model.b, model.d)
    assert flow.read == {model.b}
    assert (flow.untraced, flow.parts) == (None, 1)


def test_an_identity_with_a_hook_reads_itself():
    model = Branching()
    model.same.register_forward_hook(lambda *_: None)
    assert is_hooked(model.same)
    assert Flow.of(model).reader(model.b) is model.same


class Looking(nn.Module):
    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x):
        return self.inner[0](x) if x.sum() > 0 else x


def test_a_part_is_counted_once_however_it_is_reached():
    chain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(nn.Sequential(chain, Looking(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))), nn.Tanh())
    model[0][0].register_forward_hook(lambda *_: None)
    flow = Flow.of(model)
    inner = model[0][1].inner[0]
    # The whole with what is closed in it, the part that a hook watches, and what can be traced of that which cannot be.
    assert flow.parts == 3
    assert flow.untraced.startswith("TraceError")
    assert {module: len(calls) for module, calls in flow.calls.items()} == dict.fromkeys(
        [chain[0], chain[1], chain, inner[0], inner[1], model[0][1], model[1]], 1
    )
    assert flow.reader(model[0][1]) is model[1]


def test_a_forward_of_its_own_is_not_taken_for_that_of_the_class():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.forward = lambda x: model[0](x) + 1
    assert Flow.of(model).calls == {}


def test_hooks_are_not_run_and_nothing_is_copied_that_they_hold():
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __call__(self, *_):
            raise AssertionError("called")

    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model[0].register_forward_hook(Uncopyable())
    assert Flow.of(model).reader(model[0][0]) is model[0][1]
    model.held = Uncopyable()
    with pytest.raises(InvalidInput, match="cannot be copied"):
        Flow.of(model)


def test_all_tensors_are_shared_with_the_copy(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", None)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", None)
    assert Flow.of(model).reader(model[0]) is model[1]
