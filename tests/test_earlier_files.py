"""What earlier versions wrote is read: a plan and a model in the middle of RigL, of before patterns were named in states."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from pollard.formats.pattern import Pattern

EARLIER = Path(__file__).parent / "earlier"
PATTERNS = ["v4", "v2", "unstructured"]


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture
def held():
    # A topology within is a pickle of ours.
    return torch.load(EARLIER / "model.pt", weights_only=False)


def test_a_plan():
    plan = pollard.Plan.load(EARLIER / "plan.safetensors")
    assert [str(topology.pattern) for topology in plan.values()] == PATTERNS
    assert (plan.criterion, plan.asked) == ("snip", 0.4)
    assert pollard.sparsify_(network(), plan)[0].values.numel() == plan["0"].nnz


def test_a_state_that_names_no_pattern(held):
    assert not [name for name in held["model"] if name.endswith("pattern")]
    model = pollard.load_sparse(network(), held["model"])
    assert [str(model[place].pattern) for place in (0, 2, 4)] == PATTERNS
    assert model[0].topology.same_as(held["topology"]) or held["topology"].pattern == model[0].pattern
    again = pollard.load_sparse(network(), model.state_dict())
    assert all(again[place].topology.same_as(model[place].topology) for place in (0, 2, 4))


def test_training_goes_on_from_there(held):
    expected = torch.load(EARLIER / "expected.pt")
    model = pollard.load_sparse(network(), held["model"])
    sparse = pollard.rigl(model, torch.optim.Adam(model.parameters(), 0.01), steps=40, every=5)
    sparse.load_state_dict(held["sparse"])
    losses = []
    for _ in expected["losses"]:
        sparse.zero_grad()
        loss = F.cross_entropy(model(expected["x"]), expected["y"])
        loss.backward()
        sparse.step()
        losses.append(loss.item())
    assert sparse.updates == 6
    # On another CPU sums are rounded otherwise.
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected["losses"]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model(expected["x"]), expected["output"], rtol=1e-2, atol=1e-3)


def test_a_pickled_pattern_of_rows_alone():
    held = b"\x80\x02cpollard.formats.pattern\nPattern\nq\x00)\x81q\x01]q\x02K\x04ab."
    assert pickle.loads(held) == Pattern.parse("v4")
    for name in ("v4", "b16x2", "2:4"):
        assert pickle.loads(pickle.dumps(Pattern.parse(name))) == Pattern.parse(name)
        assert copy.deepcopy(Pattern.parse(name)) == Pattern.parse(name)
