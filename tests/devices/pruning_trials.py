"""What is decided of a model on a device is what is decided of it on the CPU, by every criterion."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from pollard.errors import InvalidInput
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.plan import Plan
from tried import DEVICE, only_cuda, untuned

pytestmark = untuned
draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 4, 6, 6, generator=draw), torch.randint(8, (48,), generator=draw)


def network(device="cpu", dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 8)
    return nn.Sequential(*layers).to(device, dtype)


def batch(device="cpu", dtype=torch.float64):
    return X.to(device, dtype), Y.to(device)


def seeded(device="cpu"):
    return torch.Generator(device).manual_seed(0)


@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [*((name, "unstructured") for name in sorted(CRITERIA)), ("snip", "v4"), ("sparsegpt", "v4"), ("synflow", "b4x2")],
)
def test_a_plan_is_that_of_the_cpu(criterion, pattern):
    # In double precision no rounding comes between scores that differ.
    plans = []
    for device in ("cpu", DEVICE):
        model = network(device)
        plan = pollard.prune(model, criterion, 0.3, batch(device), pattern=pattern, generator=seeded())
        y = pollard.sparsify_(model, plan)(X.to(device, torch.float64))
        assert y.device == torch.device(device)
        plans.append((plan, y.detach().cpu()))
    (here, y), (there, other) = plans
    assert here.nnz == there.nnz
    assert all(here[name].same_as(there[name]) for name in here)
    # Ten steps of conjugate gradients make 1e-7 of a rounding of 1e-16 in what they start from.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if criterion == "alps" else {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(y, other, **tolerance)


@only_cuda
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_in_single_precision_as_many_are_kept(criterion):
    model = network(DEVICE, torch.float32)
    here = pollard.prune(network(dtype=torch.float32), criterion, 0.3, batch(dtype=torch.float32), generator=seeded())
    there = pollard.prune(model, criterion, 0.3, batch(DEVICE, torch.float32), generator=seeded())
    assert here.nnz == there.nnz
    agree = sum(int((here.mask(name) & there.mask(name)).sum()) for name in here)
    assert agree > 0.97 * here.nnz
    assert pollard.sparsify_(model, there)(X.to(DEVICE)).isfinite().all()


@only_cuda
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie")
def test_with_deterministic_algorithms(criterion, dtype):
    torch.use_deterministic_algorithms(True)
    try:
        plans = [
            pollard.prune(network(DEVICE, dtype), criterion, 0.3, batch(DEVICE, dtype), generator=seeded())
            for _ in range(2)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(plans[0][name].same_as(plans[1][name]) for name in plans[0])


@only_cuda
@pytest.mark.parametrize("criterion", ["random", "hutchinson", "ntk-sap"])
@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie")  # behind units that no draw activates
def test_a_generator_of_the_device(criterion):
    plans = [pollard.prune(network(DEVICE), criterion, 0.3, batch(DEVICE), generator=seeded(DEVICE)) for _ in range(2)]
    assert all(plans[0][name].same_as(plans[1][name]) for name in plans[0])


def test_ties_go_by_index():
    plans = []
    for device in ("cpu", DEVICE):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)).to(device)
        with torch.no_grad():
            for layer in model:
                layer.weight.copy_(torch.arange(layer.weight.numel()).remainder(5).view_as(layer.weight) * 0.25)
        plans.append(pollard.prune(model, "magnitude", 0.37, allocation="global"))
    assert all(plans[0][name].same_as(plans[1][name]) for name in plans[0])


def test_batches_are_to_be_where_the_model_is():
    model = network(DEVICE)
    with pytest.raises(InvalidInput, match="a scoring batch on cpu"):
        pollard.prune(model, "snip", 0.3, batch())
    several = [(X[:24].to(DEVICE).double(), Y[:24].to(DEVICE)), (X[24:].to(DEVICE).double(), Y[24:].to(DEVICE))]
    plan = pollard.prune(model, "snip", 0.3, several)
    assert plan.density == pytest.approx(0.3, abs=1e-3)


def test_what_is_sparse_already_is_pruned_further():
    model, twin = network(DEVICE), network()
    for each in (model, twin):
        pollard.sparsify_(each, pollard.prune(each, "magnitude", 0.5))
        x, y = batch(DEVICE if each is model else "cpu")
        pollard.sparsify_(each, pollard.prune(each, "snip", 0.2, (x, y)))
    torch.testing.assert_close(model(X.to(DEVICE).double()).cpu(), twin(X.double()))


def test_a_plan_of_one_device_serves_another(tmp_path):
    model, twin = network(DEVICE), network()
    made = pollard.prune(twin, "sparsegpt", 0.4, batch())
    made.save(tmp_path / "plan.safetensors")
    plan = Plan.load(tmp_path / "plan.safetensors")
    pollard.sparsify_(model, plan)
    pollard.sparsify_(twin, made)
    torch.testing.assert_close(model(X.to(DEVICE).double()).cpu(), twin(X.double()))


def test_pieces_and_rounds():
    for device in ("cpu", DEVICE):
        scoring = pollard.Scoring(chunk_size=16, loss_fn=lambda o, t: F.cross_entropy(o, t).square())
        plan = pollard.prune(
            network(device), "snip", 0.3, batch(device), rounds=pollard.Rounds(3), scoring=scoring, generator=seeded()
        )
        assert plan.density == pytest.approx(0.3, abs=1e-3)


@only_cuda
def test_dropout_is_the_same_when_it_is_asked_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.5), nn.Linear(64, 8)).to(DEVICE)
    before = torch.cuda.get_rng_state(DEVICE)
    scoring = pollard.Scoring(chunk_size=8, loss_fn=lambda o, t: F.cross_entropy(o, t).square(), mode="train")
    x, y = torch.randn(32, 16).to(DEVICE), torch.randint(8, (32,)).to(DEVICE)
    plans = [pollard.prune(copy.deepcopy(model), "grasp", 0.3, (x, y), scoring=scoring) for _ in range(2)]
    assert torch.equal(torch.cuda.get_rng_state(DEVICE), before)
    assert all(plans[0][name].same_as(plans[1][name]) for name in plans[0])
