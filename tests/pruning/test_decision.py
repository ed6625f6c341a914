"""What a decision reads, how it scores and shares out, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import BATCH, generator, lenet, noisy, same
from pollard.errors import InvalidInput, LayerCollapse, PatternError
from pollard.pruning import CRITERIA, criterion, prune
from pollard.pruning.scoring import Scoring


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

    def planned():
        return prune(model, "snip", 0.5, iter([BATCH, BATCH]), loss_fn, scoring=Scoring(mode=mode, chunk_size=16))

    if fails:
        with pytest.raises(ArithmeticError):
            planned()
    else:
        assert planned().density == 0.5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert bool((model[0].weight.grad == 3).all())
    assert [parameter.grad is None for parameter in model.parameters()] == [False] + [True] * 5
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 4 + [False, True]


def test_scoring_works_under_no_grad():
    with torch.no_grad():
        inside = prune(lenet(), "snip", 0.3, BATCH)
    assert same(inside, prune(lenet(), "snip", 0.3, BATCH))


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 1000])
def test_chunks_and_batches_of_any_size_equal_one_big_batch(chunk_size):
    model, (x, y) = lenet().double(), (BATCH[0].double(), BATCH[1])
    whole = prune(model, "snip", 0.2, (x, y))
    assert same(whole, prune(model, "snip", 0.2, (x, y), scoring=Scoring(chunk_size=chunk_size)))
    parts = list(zip(x.split([5, 30, 5]), y.split([5, 30, 5]), strict=True))
    assert same(whole, prune(model, "snip", 0.2, parts, scoring=Scoring(chunk_size=chunk_size)))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_absolute_accumulation_averages_magnitudes_over_batches(chunk_size):
    model, (x, y) = lenet().double(), (BATCH[0].double(), BATCH[1])
    parts = list(zip(x.split([10, 30]), y.split([10, 30]), strict=True))
    scores = torch.zeros(24 * 12)
    for part_x, part_y in parts:
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(part_x), part_y), model[0].weight)
        scores = scores + len(part_x) * (gradient * model[0].weight).abs().flatten()
    plan = prune(model, "snip", 0.2, parts, layers="0", scoring=Scoring(accumulate="absolute", chunk_size=chunk_size))
    assert torch.equal(plan["0"].positions(), scores.topk(plan.nnz).indices.sort().values)
    assert not same(plan, prune(model, "snip", 0.2, parts, layers="0"))


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
        plan = prune(model, "snip", 0.3, BATCH, scoring=Scoring(mode=mode))
        assert torch.equal(torch.cat([plan.mask("0").flatten(), plan.mask("4").flatten()]), kept)


def test_the_loss_function_is_the_one_that_is_passed():
    model, x = lenet(), BATCH[0]
    y = torch.randn(40, 4, generator=generator())
    plan = prune(model, "snip", 0.2, (x, y), nn.MSELoss(), layers="0")
    (gradient,) = torch.autograd.grad(functional.mse_loss(model(x), y), model[0].weight)
    best = (gradient * model[0].weight).abs().flatten().topk(plan.nnz).indices
    assert torch.equal(plan["0"].positions(), best.sort().values)


def test_biases_can_be_counted_in_the_budget():
    plan = prune(lenet(), "magnitude", 0.1, allocation="uniform", count_biases=True)
    assert plan.nnz == round(0.1 * sum(parameter.numel() for parameter in lenet().parameters()))
    assert prune(lenet(), "magnitude", 1.0, count_biases=True).density == 1.0


BAD_BATCHES = {
    "no batch": (None, "no scoring batch; expected the batch that is measured on"),
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
        prune(lenet(), "snip", 0.1, batch)


def test_a_loss_that_is_no_mean_is_refused():
    with pytest.raises(InvalidInput, match=r"a loss of shape \(40,\)"):
        prune(lenet(), "snip", 0.1, BATCH, nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(InvalidInput, match="a loss of type <class 'float'>"):
        prune(lenet(), "snip", 0.1, BATCH, lambda outputs, targets: 1.0)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_a_loss_that_no_layer_has_part_in_is_refused(chunk_size):
    for loss_fn in (None, lambda outputs, targets: functional.cross_entropy(2 * outputs, targets)):
        model = lenet()
        model.forward = lambda x: x[:, :4] + 0
        with pytest.raises(InvalidInput, match="does not depend on layer '0', '2', '4'"):
            prune(model, "snip", 0.1, BATCH, loss_fn, scoring=Scoring(chunk_size=chunk_size))


def test_a_pattern_that_does_not_divide_a_layer_names_it_and_the_next_step():
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 10))
    with pytest.raises(
        PatternError, match=r"10 rows and 8 columns in layer '1'.*pattern=\{'\*': 'v4', '1': 'unstructured'\}"
    ):
        prune(model, "magnitude", 0.5, pattern="v4")
    plan = prune(model, "magnitude", 0.5, pattern={"*": "v4", "1": "unstructured"})
    assert {name: str(topology.pattern) for name, topology in plan.items()} == {"0": "v4", "1": "unstructured"}
    assert plan.nnz == 88


def test_of_several_matching_patterns_the_last_wins():
    plan = prune(lenet(), "magnitude", 0.5, pattern={"0": "v8", "[02]": "v4"})
    assert [str(topology.pattern) for topology in plan.values()] == ["v4", "v4", "unstructured"]


def test_bounds_per_layer_are_honoured():
    plan = prune(lenet(), "magnitude", 0.2, min_density={"4": 0.5}, max_density={"*": 1.0, "0": 0.1})
    assert plan["4"].density >= 0.5
    assert plan["0"].density <= 0.1
    assert plan.nnz == round(0.2 * plan.weights)
    with pytest.raises(InvalidInput, match=r"under bounds that allow \d+ to \d+"):
        prune(lenet(), "magnitude", 0.2, min_density=0.3)
    with pytest.raises(InvalidInput, match="layer '0'"):
        prune(lenet(), "magnitude", 0.2, min_density=0.5, max_density=0.4)


def test_a_layer_that_collapses_is_reported():
    model = lenet()
    nn.init.constant_(model[2].weight, 1e-9)
    with pytest.warns(LayerCollapse, match="nothing is kept of '2' at density 0.1"):
        plan = prune(model, "magnitude", 0.1, allocation="global")
    assert plan.collapsed == ("2",)


def test_without_a_generator_torchs_own_is_drawn_from():
    model, plans = lenet(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        plans.append(prune(model, "random", 0.2))
    assert [same(plans[0], plan) for plan in plans[1:]] == [True, False]


def test_by_default_only_scores_that_compare_across_layers_compete():
    assert prune(lenet(), "magnitude", 0.1).allocation == "erk"
    generator = torch.Generator().manual_seed(0)
    assert prune(lenet(), "random", 0.1, generator=generator).allocation == "erk"


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "movement"])
def test_what_is_published_with_one_density_for_all_layers_has_it(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10), nn.ReLU(), nn.Linear(10, 4))
    batch = torch.randn(50, 20), torch.randint(4, (50,))
    plan = prune(model, criterion, 0.3, batch)
    assert plan.allocation == "uniform"
    assert [topology.density for topology in plan.values()] == [0.3, 0.3, 0.3]
    if criterion == "wanda":
        assert all((topology.fan_in() == 0.3 * topology.shape[1]).all() for topology in plan.values())
    asked = prune(model, criterion, 0.3, batch, allocation="erk")
    assert asked["0"].density < 0.3 < asked["4"].density


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.0}, "density 0.0"),
        ({"density": 1.5}, "density 1.5"),
        ({"density": float("nan")}, "density nan"),
        ({"criterion": "slim"}, "criterion 'slim'; expected one of .*snip"),
        ({"criterion": torch.abs}, "declared with @criterion"),
        ({"allocation": "local"}, "allocation 'local'; expected one of uniform, er, erk, smart-ratio, global"),
        ({"pattern": "v3"}, "pattern 'v3'"),
        ({"pattern": {"fc": "v4"}}, "'fc', which matches no layer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        prune(lenet(), **{"criterion": "magnitude", "density": 0.1, **arguments})


def test_a_criterion_of_another_shape_is_refused():
    @criterion(needs=("weight",))
    def per_row(weight):
        return weight.sum(1)

    del CRITERIA["per-row"]
    with pytest.raises(InvalidInput, match=r"scores of shape \(24,\) for layer '0'"):
        prune(lenet(), per_row, 0.1)


def test_inverted_scores_keep_the_rest():
    best, worst = (prune(lenet(), "magnitude", 0.5, allocation="uniform", invert=flag) for flag in (False, True))
    assert all(torch.equal(best.mask(name), ~worst.mask(name)) for name in best)


@pytest.mark.parametrize("choice", [{"mode": "test"}, {"accumulate": "sum"}, {"chunk_size": 0}, {"temperature": 0}])
def test_bad_ways_to_score_are_refused(choice):
    with pytest.raises(InvalidInput, match="=".join(map(repr, *choice.items())).replace("'", "", 2)):
        Scoring(**choice)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "wanda", "fisher", "sparsegpt"])
def test_a_model_is_called_as_the_user_says(criterion):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = lenet()

        def score(self, *, features):
            return {"logits": self.net(features)}

    model, (x, y) = Named(), BATCH
    scoring = Scoring(forward=lambda model, inputs: model.score(features=inputs["x"])["logits"])
    found = prune(model, criterion, 0.3, ({"x": x}, y), scoring=scoring)
    expected = prune(lenet(), criterion, 0.3, BATCH)
    assert all(found[f"net.{name}"].same_as(expected[name]) for name in expected)


@pytest.mark.parametrize(
    "batch, expected",
    [
        ((torch.randn(40, 11), BATCH[1]), "inputs that the model does not take"),
        ((BATCH[0].double(), BATCH[1]), "inputs that the model does not take"),
        ((BATCH[0], BATCH[1] + 100), "outputs and targets that the loss does not take"),
        ((BATCH[0], BATCH[1].float()), "outputs and targets that the loss does not take"),
    ],
)
def test_what_a_model_or_loss_does_not_take_is_said(batch, expected):
    with pytest.raises(InvalidInput, match=expected):
        prune(lenet(), "snip", 0.5, batch)


@pytest.mark.parametrize("wrong", [{"density": "0.1"}, {"density": 0.1, "rounds": 2.5}, {"density": 0.1, "within": 3}])
def test_arguments_of_other_types_are_refused(wrong):
    with pytest.raises(InvalidInput):
        prune(lenet(), "magnitude", **wrong)


def test_pruning_works_in_inference_mode():
    with torch.inference_mode():
        assert prune(lenet(), "magnitude", 0.5).density == 0.5
