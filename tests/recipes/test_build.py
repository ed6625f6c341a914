"""The network of a recipe: the density asked for, to the grain, and never a dense weight where none is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput, LayerCollapse
from pollard.networks import Ends
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.surgery import densify_
from pollard.recipes import Recipe
from pollard.recipes.build import build, decide, initial, layer_patterns, random_plan
from pollard.streamed.tensor import StreamedTensor
from pollard.training import Examples

ENDS = Ends((16,), 10)
MLP = "mlp-16-24-12-10"
WEIGHTS = 16 * 24 + 24 * 12 + 12 * 10


def examples():
    draw = torch.Generator().manual_seed(0)
    return Examples(torch.randn(200, 16, generator=draw), torch.randint(0, 10, (200,), generator=draw))


def linear(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("method", ["snip", "magnitude", "random"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "er", "erk", "owl"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_density_asked_is_density_got(method, allocation, pattern):
    recipe = Recipe(model=MLP, method=method, allocation=allocation, pattern=pattern, density=0.3)
    model, plan = build(recipe, ENDS, examples())
    layers = linear(model, SparseLinear)
    assert list(layers) == list(plan) == ["fc1", "fc2", "fc3"]
    assert sum(layer.topology.nnz for layer in layers.values()) == plan.nnz == round(0.3 * WEIGHTS)
    assert [str(topology.pattern) for topology in plan.values()] == [pattern, pattern, "unstructured"]
    assert not any(layer.bias.any() for layer in layers.values())


def test_a_dense_recipe_has_no_plan():
    model, plan = build(Recipe(model=MLP, method="dense"), ENDS, examples())
    assert plan is None
    assert len(linear(model, nn.Linear)) == 3


@pytest.mark.parametrize("method", ["snip", "random"])
def test_masked_and_compressed_start_equal(method):
    x = examples().x
    recipe = Recipe(model=MLP, method=method, density=0.3, pattern="v2")
    sparse, plan = build(recipe, ENDS, examples())
    masked, masked_plan = build(
        Recipe(model=MLP, method=method, density=0.3, pattern="v2", storage="masked"), ENDS, examples()
    )
    assert len(linear(masked, MaskedLinear)) == 3
    assert all(plan[name].same_as(masked_plan[name]) for name in plan)
    torch.testing.assert_close(sparse(x), masked(x))


def test_a_stored_plan_is_used_as_it_is():
    _, plan = build(Recipe(model=MLP, method="random", density=0.3, seed=1), ENDS, examples())
    model, used = build(Recipe(model=MLP, method="snip", density=0.3), ENDS, examples(), plan)
    assert used is plan
    assert all(layer.topology.same_as(plan[name]) for name, layer in linear(model, SparseLinear).items())


def test_a_build_depends_on_its_recipe_alone():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results += [
            build(Recipe(model=MLP, method=method, density=0.3), ENDS, examples())[0].state_dict()
            for method in ("snip", "random")
        ]
    for one, other in ((0, 2), (1, 3)):
        assert all(torch.equal(results[one][name], results[other][name]) for name in results[one])


def test_seeds_differ():
    plans = [build(Recipe(model=MLP, method="random", density=0.3, seed=seed), ENDS, examples())[1] for seed in (0, 1)]
    assert not plans[0]["fc1"].same_as(plans[1]["fc1"])


def test_score_batch_changes_what_snip_sees():
    small, large = (build(Recipe(model=MLP, density=0.3, score_batch=n), ENDS, examples())[1] for n in (4, 200))
    assert not small["fc1"].same_as(large["fc1"])


def test_born_sparse_holds_nothing_dense():
    # 40 thousand inputs and outputs: a dense weight, or one byte per weight, would take gigabytes.
    recipe = Recipe(method="random", density=1e-6, model="mlp-40000-40000-2")
    model, plan = build(recipe, Ends((40_000,), 2), examples())
    assert plan.nnz == round(1e-6 * (40_000 * 40_000 + 80_000))
    assert model[0].values.shape == (plan["fc1"].nnz,)


@pytest.mark.parametrize("initialiser", ["lecun", "kaiming", "xavier", "torch"])
@pytest.mark.parametrize("method", ["snip", "magnitude", "rigl"])
def test_a_network_that_is_never_dense_keeps_what_its_dense_twin_would(method, initialiser):
    recipe = Recipe(model=MLP, method=method, initialiser=initialiser, density=0.2, never_dense=True)
    model, plan = build(recipe, ENDS, examples())
    streamed = initial(recipe, ENDS)
    assert all(isinstance(each.weight, StreamedTensor) for each in linear(streamed, nn.Linear).values())
    dense = densify_(streamed)
    found = decide(recipe, dense, examples())
    assert all(plan[name].same_as(found[name]) for name in found)
    for name, layer in linear(model, SparseLinear).items():
        assert torch.equal(layer.to_dense().weight, dense.get_submodule(name).weight * found.mask(name))


def test_laws_of_numbers_by_position_are_those_of_the_initialisers():
    for initialiser in ("lecun", "kaiming", "xavier", "torch"):
        drawn = [
            initial(
                Recipe(model="mlp-400-300-10", initialiser=initialiser, never_dense=streamed), Ends((400,), 10)
            ).fc1.weight
            for streamed in (True, False)
        ]
        mine, theirs = (
            each.to_dense().detach() if isinstance(each, StreamedTensor) else each.detach() for each in drawn
        )
        assert mine.std() == pytest.approx(float(theirs.std()), rel=0.01)
        assert mine.abs().max() == pytest.approx(float(theirs.abs().max()), rel=0.15)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "dense"},
        {"method": "lamp"},
        {"score_at": 1.0},
        {"repair": "isometry"},
        {"repair": "orthogonal"},
        {"storage": "masked"},
        {"allocation": "owl"},
    ],
)
def test_what_needs_dense_weights_is_refused_where_they_are_never_made(fields):
    with pytest.raises(InvalidInput, match="never_dense"):
        Recipe(never_dense=True, **fields)


def test_a_layer_left_empty_is_told():
    with pytest.warns(LayerCollapse, match="fc1"):
        random_plan(Recipe(model=MLP, method="random", density=0.01), {"fc1": (4, 4), "fc2": (4, 400)})


def test_a_pattern_that_does_not_divide_a_layer_leaves_it_unstructured():
    patterns = layer_patterns("v8", {"a": (24, 3), "b": (12, 3), "c": (8, 3)})
    assert {name: str(pattern) for name, pattern in patterns.items()} == {"a": "v8", "b": "unstructured", "c": "v8"}


def test_a_network_is_made_orthogonal_with_as_many_weights_as_its_method_keeps():
    recipe = Recipe(model=MLP, method="random", allocation="erk", density=0.3)
    plain, made = (build(each, ENDS, examples())[0] for each in (recipe, replace(recipe, repair="orthogonal")))
    before, after = (linear(model, SparseLinear) for model in (plain, made))
    assert [layer.topology.nnz for layer in before.values()] == [layer.topology.nnz for layer in after.values()]
    for layer in after.values():
        weight = layer.to_dense().weight.detach()
        wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
        torch.testing.assert_close(wide @ wide.T, torch.eye(len(wide)), rtol=0, atol=1e-5)
