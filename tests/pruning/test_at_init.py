from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pollard.errors import InvalidInput, LayerCollapse, NothingMatched, PatternError
from pollard.pruning import ALLOCATIONS, CRITERIA, needs, prune_at_init

BATCH = (torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4)


def lenet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


def noisy() -> nn.Sequential:
    """With everything that scoring could disturb."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 4))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def same(one, other) -> bool:
    return all(one[name].same_as(other[name]) for name in one) and list(one) == list(other)


# ------------------------------------------------------------------------------------- SNIP, computed independently


def snip_masks(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, density: float) -> list[torch.Tensor]:
    """By the definition: a gate on every connection, the derivative by the gates, one sorted list of everything."""
    linear = [module for module in model if isinstance(module, nn.Linear)]
    gates = [torch.ones_like(module.weight, requires_grad=True) for module in linear]
    hidden = x
    for index, (module, gate) in enumerate(zip(linear, gates, strict=True)):
        hidden = hidden @ (gate * module.weight).T + module.bias
        if index < len(linear) - 1:
            hidden = hidden.clamp(min=0)
    loss = -functional.log_softmax(hidden, 1)[torch.arange(len(y)), y].mean()
    loss.backward(inputs=gates)
    total = sum(gate.grad.abs().sum() for gate in gates)
    scores = [(score / total).item() for gate in gates for score in gate.grad.abs().flatten()]
    kept = sorted(range(len(scores)), key=lambda position: (-scores[position], position))[
        : round(density * len(scores))
    ]
    flat = torch.zeros(len(scores), dtype=torch.bool)
    flat[kept] = True
    sizes = [gate.numel() for gate in gates]
    return [part.view(gate.shape) for part, gate in zip(flat.split(sizes), gates, strict=True)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_snip_is_its_definition_index_for_index(seed, density):
    model = lenet(seed).double()
    x, y = BATCH[0].double(), BATCH[1]
    plan = prune_at_init(model, "snip", density, (x, y))
    for name, mask in zip(plan, snip_masks(model, x, y, density), strict=True):
        assert torch.equal(plan.mask(name), mask)


def test_snip_breaks_ties_by_index_as_the_definition_does():
    # One sample of ones and zeros, through weights that come in pairs: every score exists twice, and many are zero.
    model = lenet().double()
    with torch.no_grad():
        model[0].weight[:, 1::2] = model[0].weight[:, ::2]
    x, y = torch.tensor([[1.0] * 6 + [0.0] * 6], dtype=torch.float64), torch.tensor([2])
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), weights)
    scores = torch.cat([(g * w).abs().flatten() for g, w in zip(gradients, weights, strict=True)])
    cut = []
    for count in range(60, 736, 13):
        plan = prune_at_init(model, "snip", count / 736, (x, y))
        masks = [plan.mask(name) for name in plan]
        assert all(map(torch.equal, masks, snip_masks(model, x, y, count / 736)))
        kept = torch.cat([mask.flatten() for mask in masks])
        cut += [scores[kept].min().item()] if scores[kept].min() == scores[~kept].max() else []
    assert 0 in cut, "a threshold should cut through the zeros"
    assert max(cut) > 0, "and another through a pair"


def test_snip_scores_of_vectors_are_sums_over_their_weights():
    model = lenet()
    plan = prune_at_init(model, "snip", 0.3, BATCH, allocation="uniform", pattern="v4")
    functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    for name in ("0", "2", "4"):
        weight = model.get_submodule(name).weight
        score = (weight * weight.grad).abs().view(-1, 4, weight.shape[1]).sum(1).flatten()
        kept = torch.zeros(score.numel(), dtype=torch.bool)
        kept[plan[name].positions()] = True
        assert score[kept].min() >= score[~kept].max()


# ------------------------------------------------------------------------------------------- what every member must do


@given(
    st.sampled_from(sorted(CRITERIA)),
    st.sampled_from(sorted(ALLOCATIONS)),
    st.sampled_from(["unstructured", "v2", "v4"]),
    st.floats(0.05, 1),
)
def test_every_member_is_exact_and_keeps_its_pattern(criterion, allocation, pattern, density):
    model = lenet()
    plan = prune_at_init(
        model,
        criterion,
        density,
        BATCH,
        allocation=allocation,
        pattern=pattern,
        generator=generator(),
        min_density=0.01,
    )
    rows = plan["0"].pattern.rows
    assert plan.nnz == rows * round(density * plan.weights / rows)
    assert (plan.criterion, plan.allocation, plan.asked) == (criterion, allocation, density)
    for name in plan:
        mask = plan.mask(name)
        assert mask.shape == model.get_submodule(name).weight.shape
        assert int(mask.sum()) == plan[name].nnz
        groups = mask.view(-1, rows, mask.shape[1])
        assert torch.equal(groups.any(1), groups.all(1))


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_is_deterministic_and_nested_as_density_grows(criterion):
    densities = [0.05, 0.1, 0.11, 0.4, 0.9, 1.0]
    plans = [
        prune_at_init(lenet(), criterion, density, BATCH, generator=generator(), min_density=0.01)
        for density in densities
    ]
    again = prune_at_init(lenet(), criterion, densities[0], BATCH, generator=generator(), min_density=0.01)
    assert same(plans[0], again)
    for fewer, more in pairwise(plans):
        assert all(not (fewer.mask(name) & ~more.mask(name)).any() for name in fewer)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_only_read(mode, fails):
    model = noisy().train()
    model[1].eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    model[4].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    random_state = torch.get_rng_state()

    def loss_fn(outputs, targets):
        if fails:
            raise ArithmeticError
        return functional.cross_entropy(outputs, targets)

    def prune():
        return prune_at_init(model, "snip", 0.5, iter([BATCH, BATCH]), loss_fn, mode=mode, chunk_size=16)

    if fails:
        with pytest.raises(ArithmeticError):
            prune()
    else:
        assert prune().density == 0.5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert bool((model[0].weight.grad == 3).all())
    assert [parameter.grad is None for parameter in model.parameters()] == [False] + [True] * 5
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 4 + [False, True]


def test_scoring_works_under_no_grad():
    with torch.no_grad():
        inside = prune_at_init(lenet(), "snip", 0.3, BATCH)
    assert same(inside, prune_at_init(lenet(), "snip", 0.3, BATCH))


# ------------------------------------------------------------------------------------------------ the scoring batches


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 1000])
def test_chunks_and_batches_of_any_size_equal_one_big_batch(chunk_size):
    model, (x, y) = lenet().double(), (BATCH[0].double(), BATCH[1])
    whole = prune_at_init(model, "snip", 0.2, (x, y))
    assert same(whole, prune_at_init(model, "snip", 0.2, (x, y), chunk_size=chunk_size))
    parts = list(zip(x.split([5, 30, 5]), y.split([5, 30, 5]), strict=True))
    assert same(whole, prune_at_init(model, "snip", 0.2, parts, chunk_size=chunk_size))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_absolute_accumulation_averages_magnitudes_over_batches(chunk_size):
    model, (x, y) = lenet().double(), (BATCH[0].double(), BATCH[1])
    parts = list(zip(x.split([10, 30]), y.split([10, 30]), strict=True))
    scores = torch.zeros(24 * 12)
    for part_x, part_y in parts:
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(part_x), part_y), model[0].weight)
        scores = scores + len(part_x) * (gradient * model[0].weight).abs().flatten()
    plan = prune_at_init(model, "snip", 0.2, parts, layers="0", accumulate="absolute", chunk_size=chunk_size)
    assert torch.equal(plan["0"].positions(), scores.topk(plan.nnz).indices.sort().values)
    assert not same(plan, prune_at_init(model, "snip", 0.2, parts, layers="0"))


def test_batch_norm_scores_in_the_mode_that_is_asked_for():
    model = noisy()
    model[3] = nn.Identity()
    model[1].running_var.mul_(9)
    for mode in ("eval", "train"):
        twin = copy.deepcopy(model).train(mode == "train")
        gradients = torch.autograd.grad(
            functional.cross_entropy(twin(BATCH[0]), BATCH[1]), [twin[0].weight, twin[4].weight]
        )
        scores = torch.cat(
            [(g * w).abs().flatten() for g, w in zip(gradients, (twin[0].weight, twin[4].weight), strict=True)]
        )
        kept = torch.zeros(scores.numel(), dtype=torch.bool)
        kept[scores.topk(round(0.3 * scores.numel())).indices] = True
        plan = prune_at_init(model, "snip", 0.3, BATCH, mode=mode)
        assert torch.equal(torch.cat([plan.mask("0").flatten(), plan.mask("4").flatten()]), kept)


def test_the_loss_function_is_the_one_that_is_passed():
    model, x = lenet(), BATCH[0]
    y = torch.randn(40, 4, generator=generator())
    plan = prune_at_init(model, "snip", 0.2, (x, y), nn.MSELoss(), layers="0")
    (gradient,) = torch.autograd.grad(functional.mse_loss(model(x), y), model[0].weight)
    best = (gradient * model[0].weight).abs().flatten().topk(plan.nnz).indices
    assert torch.equal(plan["0"].positions(), best.sort().values)


def test_biases_can_be_counted_in_the_budget():
    plan = prune_at_init(lenet(), "magnitude", 0.1, allocation="uniform", count_biases=True)
    assert plan.nnz == round(0.1 * sum(parameter.numel() for parameter in lenet().parameters()))
    assert prune_at_init(lenet(), "magnitude", 1.0, count_biases=True).density == 1.0


BAD_BATCHES = {
    "no batch": (None, "no batch for criterion 'snip'"),
    "none in the iterable": ([], "no scoring batch"),
    "inputs alone": ([BATCH[0]], "a scoring batch of type Tensor"),
    "not tensors": ([(1, 2)], "a scoring batch of type tuple"),
    "lengths that differ": ((BATCH[0], BATCH[1][:3]), r"inputs of shape \(40, 12\) with targets of shape \(3,\)"),
    "no sample": ((BATCH[0][:0], BATCH[1][:0]), r"inputs of shape \(0, 12\)"),
    "another device": ((BATCH[0].to("meta"), BATCH[1]), "a scoring batch on meta"),
    "NaN": ((BATCH[0] * float("nan"), BATCH[1]), r"288 of 288 scores of layer '0' that are not finite"),
}


@pytest.mark.parametrize(("batch", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_bad_batch_is_refused(batch, message):
    with pytest.raises(InvalidInput, match=message):
        prune_at_init(lenet(), "snip", 0.1, batch)


def test_a_loss_that_is_no_mean_or_misses_a_layer_is_refused():
    with pytest.raises(InvalidInput, match=r"a loss of shape \(40,\)"):
        prune_at_init(lenet(), "snip", 0.1, BATCH, nn.CrossEntropyLoss(reduction="none"))
    model = lenet()
    model.register_module("spare", nn.Linear(3, 3))
    model.forward = lambda x: model[4](model[2](model[0](x)))
    with pytest.raises(InvalidInput, match="does not depend on layer 'spare'"):
        prune_at_init(model, "snip", 0.1, BATCH)


# ------------------------------------------------------------------------------------------- layers, patterns and bounds


def test_only_linear_layers_are_taken():
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(9, 8),
            "norm": nn.LayerNorm(8),
            "attend": nn.MultiheadAttention(8, 2),
            "out": nn.Linear(8, 9),
        }
    )
    assert list(prune_at_init(model, "magnitude", 0.5)) == ["out"]


@pytest.mark.parametrize("layers", ["[02]", ["0", "2"], lambda name, module: module.in_features > 11 and name < "4"])
def test_layers_are_selected_by_name_or_by_rule(layers):
    assert list(prune_at_init(lenet(), "magnitude", 0.5, layers=layers)) == ["0", "2"]


@pytest.mark.parametrize("layers", ["fc*", ["0", "fc"], lambda *_: False, []])
def test_a_selection_of_nothing_is_refused(layers):
    with pytest.raises(NothingMatched):
        prune_at_init(lenet(), "magnitude", 0.5, layers=layers)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(NothingMatched, match="none of 0 layers"):
        prune_at_init(nn.Sequential(nn.Conv2d(1, 1, 1)), "magnitude", 0.5)


def test_a_shared_module_is_one_layer_and_its_gradient_counts_every_use():
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(12, 4))
    plan = prune_at_init(model, "snip", 0.2, BATCH, layers="0")
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(BATCH[0]), BATCH[1]), shared.weight)
    assert torch.equal(
        plan["0"].positions(), (gradient * shared.weight).abs().flatten().topk(plan.nnz).indices.sort().values
    )
    assert list(prune_at_init(model, "magnitude", 0.2)) == ["0", "3"]


def test_tied_weights_are_refused_unless_left_out():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    model[2].weight = model[0].weight
    with pytest.raises(InvalidInput, match=r"layer '2' .* tied: 0.weight = 2.weight"):
        prune_at_init(model, "magnitude", 0.5)
    assert list(prune_at_init(model, "magnitude", 0.5, layers="1")) == ["1"]


def test_a_bare_linear_layer_is_a_plan_of_one():
    plan = prune_at_init(nn.Linear(12, 4), "snip", 0.5, BATCH)
    assert list(plan) == [""]
    assert plan.nnz == 24


def test_a_pattern_that_does_not_divide_a_layer_names_it_and_the_next_step():
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 10))
    with pytest.raises(PatternError, match=r"10 rows in layer '1'.*pattern=\{'\*': 'v4', '1': 'unstructured'\}"):
        prune_at_init(model, "magnitude", 0.5, pattern="v4")
    plan = prune_at_init(model, "magnitude", 0.5, pattern={"*": "v4", "1": "unstructured"})
    assert {name: str(topology.pattern) for name, topology in plan.items()} == {"0": "v4", "1": "unstructured"}
    assert plan.nnz == 88


def test_of_several_matching_patterns_the_last_wins():
    plan = prune_at_init(lenet(), "magnitude", 0.5, pattern={"0": "v8", "[02]": "v4"})
    assert [str(topology.pattern) for topology in plan.values()] == ["v4", "v4", "unstructured"]


def test_bounds_per_layer_are_honoured():
    plan = prune_at_init(lenet(), "magnitude", 0.2, min_density={"4": 0.5}, max_density={"*": 1.0, "0": 0.1})
    assert plan["4"].density >= 0.5
    assert plan["0"].density <= 0.1
    assert plan.nnz == round(0.2 * plan.weights)
    with pytest.raises(InvalidInput, match=r"under bounds that allow \d+ to \d+"):
        prune_at_init(lenet(), "magnitude", 0.2, min_density=0.3)
    with pytest.raises(InvalidInput, match="layer '0'"):
        prune_at_init(lenet(), "magnitude", 0.2, min_density=0.5, max_density=0.4)


def test_a_layer_that_collapses_is_reported():
    model = lenet()
    nn.init.constant_(model[2].weight, 1e-9)
    with pytest.warns(LayerCollapse, match="nothing is kept of '2' at density 0.1"):
        plan = prune_at_init(model, "magnitude", 0.1, allocation="global")
    assert plan.collapsed == ("2",)


def test_without_a_generator_torchs_own_is_drawn_from():
    model, plans = lenet(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        plans.append(prune_at_init(model, "random", 0.2))
    assert [same(plans[0], plan) for plan in plans[1:]] == [True, False]


def test_by_default_only_scores_that_compare_across_layers_compete():
    assert prune_at_init(lenet(), "magnitude", 0.1).allocation == "erk"
    generator = torch.Generator().manual_seed(0)
    assert prune_at_init(lenet(), "random", 0.1, generator=generator).allocation == "erk"


# -------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, "density 0.0"),
        ({"density": 1.5}, "density 1.5"),
        ({"density": float("nan")}, "density nan"),
        ({"criterion": "slim"}, "criterion 'slim'; expected one of magnitude, random, snip"),
        ({"criterion": torch.abs}, "declared with @needs"),
        ({"allocation": "local"}, "allocation 'local'; expected one of uniform, er, erk, global"),
        ({"pattern": "v3"}, "pattern 'v3'"),
        ({"pattern": {"fc": "v4"}}, "'fc', which matches no layer"),
        ({"mode": "test"}, "mode='test'"),
        ({"accumulate": "sum"}, "accumulate='sum'"),
        ({"chunk_size": 0}, "chunk_size=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        prune_at_init(lenet(), **{"criterion": "magnitude", "density": 0.1, **arguments})


def test_a_criterion_of_another_shape_is_refused():
    @needs("weight")
    def per_row(weight):
        return weight.sum(1)

    del CRITERIA["per_row"]
    with pytest.raises(InvalidInput, match=r"scores of shape \(24,\) for layer '0'"):
        prune_at_init(lenet(), per_row, 0.1)
