"""Decisions over weights without memory: those that the dense twin gets, weight for weight."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import pollard
from networks import convolutions
from pollard.errors import InvalidInput, LayerCollapse, ScoresTie
from pollard.pruning.criteria import CRITERIA, criterion
from pollard.pruning.streaming import decision as streamed_decision
from pollard.streamed import source

BY_ROW = [name for name, rule in CRITERIA.items() if rule.by_row]
DENSITY = 0.2


class Block(nn.Module):
    """A residual block with attention: what is around the weights is torch's own."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.head((x + self.down(nn.functional.gelu(self.up(x)))).mean(1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 5)), (12,)),
    "convolutions": (convolutions, (3, 6, 6)),
    "attention": (Block, (4, 16)),
}


def twins(model="mlp", seed=0):
    """The network without memory, its dense twin, and a batch."""
    make, shape = MODELS[model]
    with pollard.never_dense(seed):
        streamed = make()
    draw = torch.Generator().manual_seed(seed)
    batch = torch.randn(10, *shape, generator=draw), torch.randint(5, (10,), generator=draw)
    return streamed, pollard.densify_(copy.deepcopy(streamed)), batch


def both(model="mlp", *args, seed=0, **options):
    """The plans of the two."""
    *networks, batch = twins(model, seed)
    draw = [torch.Generator().manual_seed(1) for _ in networks]
    plans, told = [], []
    for each, generator in zip(networks, draw, strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plans.append(pollard.prune(each, *args, batch=batch, generator=generator, **options))
        told.append([str(one.message) for one in caught])
    assert told[0] == told[1]
    return plans


def same(plan, other):
    assert list(plan) == list(other)
    assert (plan.criterion, plan.allocation, plan.asked) == (other.criterion, other.allocation, other.asked)
    for name in plan:
        assert plan[name].same_as(other[name]), name


@pytest.fixture(params=["whole", "in blocks"])
def room(request, monkeypatch):
    """Weights in one block, or in many, and rounds that list what they keep, or tell it by its lowest score."""
    if request.param == "in blocks":
        monkeypatch.setattr(source, "ROOM", 1)
        monkeypatch.setattr(streamed_decision, "ROOM", 50)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", BY_ROW)
def test_every_criterion_that_goes_by_rows_keeps_what_it_keeps_of_the_dense_twin(rule, model, room):
    if rule == "synflow" and model == "attention":
        pytest.skip("a flow through attention is not what synflow scores")
    rounds = min(CRITERIA[rule].rounds, 6)
    same(*both(model, rule, DENSITY, rounds=rounds))


@pytest.mark.parametrize("rule", ["snip", "magnitude", "synflow"])
@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", "global", "smart-ratio"])
def test_every_allocation(rule, allocation, room):
    same(*both("mlp", rule, DENSITY, allocation=allocation, rounds=2))


@pytest.mark.parametrize("grain", ["v4", "b2x2", "v8", "2:4"])
@pytest.mark.parametrize("rule", ["snip", "magnitude", "force"])
def test_every_kind_of_grain(rule, grain, room):
    pattern = grain if grain == "2:4" else {"*": grain, "4": "unstructured"}
    same(*both("mlp", rule, None if grain == "2:4" else DENSITY, pattern=pattern, allocation="erk", rounds=3))


def test_many_rounds_of_synflow_leave_the_same_network(room):
    same(*both("mlp", "synflow", 0.05, rounds=30))


@pytest.mark.parametrize("options", [{"invert": True}, {"layers": ["0", "2"]}, {"count_biases": True}])
def test_options(options, room):
    same(*both("mlp", "snip", DENSITY, **options))


def test_bounds_of_layers_under_an_allocation_by_size(room):
    same(*both("mlp", "magnitude", DENSITY, allocation="uniform", min_density={"4": 0.9}, max_density={"0": 0.1}))


def test_within_an_earlier_plan(room):
    *networks, batch = twins()
    plans = []
    for each in networks:
        first = pollard.prune(each, "snip", 0.5, batch=batch)
        plans.append(pollard.prune(each, "grasp", 0.1, batch=batch, within=first))
        assert all(not bool((plans[-1].mask(name) & ~first.mask(name)).any()) for name in first)
    same(*plans)


def test_several_batches_and_chunks_and_scoring_in_train_mode(room):
    *networks, (inputs, targets) = twins("convolutions")
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    for options in ({"mode": "train"}, {"chunk_size": 3}, {"accumulate": "absolute"}):
        scoring = pollard.Scoring(**options)
        same(*(pollard.prune(each, "snip", DENSITY, batches, scoring=scoring) for each in networks))


def test_a_dense_layer_beside_streamed_ones_competes_with_them():
    with pollard.never_dense(0):
        streamed = nn.Sequential(nn.Linear(12, 40), nn.ReLU())
    streamed.append(nn.Linear(40, 5))
    dense = pollard.densify_(copy.deepcopy(streamed))
    batch = torch.randn(10, 12), torch.randint(5, (10,))
    same(*(pollard.prune(each, "snip", DENSITY, batch) for each in (streamed, dense)))


def test_an_allocation_by_scores_of_its_own_is_refused():
    streamed, _, batch = twins()
    with pytest.raises(InvalidInput, match="allocation 'owl' over streamed weights"):
        pollard.prune(streamed, "snip", 0.2, batch, allocation="owl")


def test_ties_at_zero_and_empty_layers_are_told_as_of_the_dense_twin():
    *networks, (inputs, targets) = twins()
    told = []
    for each in networks:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pollard.prune(each, "snip", 0.9, (inputs * (torch.arange(12) < 3), targets))
            pollard.prune(each, "magnitude", 0.02, allocation="global")
        told.append([(each.category, str(each.message)) for each in caught])
    assert told[0] == told[1]
    assert {kind for kind, _ in told[0]} == {ScoresTie, LayerCollapse}


def test_sparsify_gives_what_is_kept_the_numbers_of_the_dense_twin_and_it_trains_alike():
    for model in MODELS:
        *networks, (inputs, targets) = twins(model)
        losses = []
        for each in networks:
            pollard.sparsify_(each, pollard.prune(each, "snip", DENSITY, (inputs, targets)))
            optimizer, found = torch.optim.Adam(each.parameters(), 1e-2), []
            for _ in range(3):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(each(inputs), targets)
                loss.backward()
                optimizer.step()
                found.append(loss.item())
            losses.append(found)
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_masked_storage_is_dense_as_ever():
    streamed, dense, batch = twins()
    plan = pollard.prune(streamed, "snip", DENSITY, batch)
    for each in (streamed, dense):
        pollard.sparsify_(each, plan, storage="masked")
    assert torch.equal(streamed[0].weight, dense[0].weight)


def test_the_model_is_only_read():
    streamed, _, batch = twins("convolutions")
    before = {name: type(each) for name, each in streamed.named_parameters()}
    norm = copy.deepcopy(streamed[1].state_dict())
    pollard.prune(streamed, "grasp", DENSITY, batch)
    assert before == {name: type(each) for name, each in streamed.named_parameters()}
    assert all(torch.equal(norm[name], each) for name, each in streamed[1].state_dict().items())
    assert all(each.grad is None for each in streamed.parameters())


def test_what_cannot_be_decided_by_rows_says_so_and_what_can():
    streamed, _, batch = twins()
    with pytest.raises(InvalidInput, match="snip"):
        pollard.prune(streamed, "lamp", DENSITY)
    with pytest.raises(InvalidInput, match="densify_"):
        pollard.prune(streamed, "sparsegpt", DENSITY, batch)
    with pytest.raises(InvalidInput, match="erk"):
        pollard.prune(streamed, "snip", DENSITY, batch, min_density=0.01)
    with pytest.raises(InvalidInput, match="erk"):
        pollard.prune(streamed, "snip", DENSITY, batch, pattern={"*": "v2", "4": "unstructured"})
    with pytest.raises(InvalidInput, match="not finite"):
        pollard.prune(streamed, "snip", DENSITY, (batch[0] * torch.inf, batch[1]))


def test_a_criterion_of_one_s_own_joins_by_declaring_that_it_goes_by_rows():
    @criterion(needs=("weight",), by_row=True)
    def smallest_of_all(weight):
        return -weight.abs()

    @criterion(needs=("weight",), by_row=True)
    def of_the_wrong_shape(weight):
        return weight.abs().sum(1)

    try:
        same(*both("mlp", smallest_of_all, DENSITY))
        with pytest.raises(InvalidInput, match="one score per weight"):
            pollard.prune(twins()[0], of_the_wrong_shape, DENSITY)
    finally:
        CRITERIA.pop("smallest-of-all")
        CRITERIA.pop("of-the-wrong-shape")


def test_a_model_of_transformers_is_born_from_its_configuration():
    from transformers import BertConfig, BertForSequenceClassification  # slow to import

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with pollard.never_dense(0):
        streamed = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)).eval()
    dense = pollard.densify_(copy.deepcopy(streamed))
    draw = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(50, (6, 9), generator=draw),
        "labels": torch.randint(3, (6,), generator=draw),
    }
    assert streamed.bert.pooler.dense.weight.block(0, 32).std() == pytest.approx(0.02, rel=0.1)
    same(*(pollard.prune(each, "snip", 0.1, batch, allocation="erk") for each in (streamed, dense)))
