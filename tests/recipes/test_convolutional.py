"""Runs of networks of images: every kind of method, both storages, killed and resumed, read again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pollard import networks
from pollard.composites import matrices
from pollard.errors import InvalidInput
from pollard.formats.store import load_tensors
from pollard.networks import Ends
from pollard.nn.surgery import sparse_layers
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.plan import Plan
from pollard.recipes import Recipe, RunResult, run
from pollard.recipes.build import build
from pollard.recipes.models import OWN, initial_network, weight_shapes
from pollard.recipes.problem import Problem
from pollard.recipes.recipe import MODES
from pollard.training import evaluate, loop
from pollard.training.randomness import generator

ENDS = Ends((1, 4, 4), 2)
NAMED = "resnet-20-x0.25"
NETWORK = "nets_of_a_recipe:Small"
MODULE = """
from torch import nn


class Small(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.LazyLinear(classes)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.head((x + self.norm2(self.conv2(x)).relu()).flatten(1))


def alone():
    return Small((1,), 2)
"""
SHAPES = {"conv1.linear": (8, 9), "conv2.linear": (8, 72), "head": (2, 128)}
WEIGHTS = sum(rows * columns for rows, columns in SHAPES.values())
METHODS = {
    "before training": {},
    "without a score": {"method": "random"},
    "of signals": {"method": "synflow", "score_rounds": 5},
    "of curvature": {"method": "grasp"},
    "after training": {"method": "magnitude", "score_at": 2.0},
    "lottery ticket": {"method": "magnitude", "score_at": 2.0, "weights_at": 0.5, "schedule_at": 0.5},
    "in cycles": {"method": "magnitude", "score_at": 1.0, "cycles": 2},
    "moving": {"method": "rigl", "update_every": 3},
    "falling": {"method": "gmp", "update_every": 3},
    "augmented": {"augment": "crop,flip"},
    "dense": {"method": "dense"},
}


@pytest.fixture(autouse=True)
def written(own_folder):
    Path("nets_of_a_recipe.py").write_text(MODULE)
    yield
    sys.modules.pop("nets_of_a_recipe", None)


@pytest.fixture(scope="module")
def recipe(tiny_data):
    return Recipe(data=str(tiny_data), model=NETWORK, density=0.3, allocation="erk", epochs=2, batch_size=10, lr=0.05)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder that tests share, so that the dense network is trained once."""
    return tmp_path_factory.mktemp("convolutional")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_goes_through_in_both_storages(out, recipe, name, storage):
    chosen = replace(recipe, storage=storage, **METHODS[name])
    result = run(chosen, out, progress=False)
    assert result.weights == WEIGHTS
    assert list(result.densities) == list(SHAPES)
    expected = WEIGHTS if name == "dense" else round(0.3 * WEIGHTS)
    assert result.nnz == expected
    model = result.model()
    state = load_tensors(result.folder / "model.safetensors")[0]
    assert same(model.state_dict(), state)
    assert {part for part in state if part.endswith("running_var")}
    assert len(sparse_layers(model)) == (0 if name == "dense" else len(SHAPES))
    assert result.kept() is None if name == "dense" else result.kept().nnz == expected
    assert RunResult.read(result.folder) == result


def test_both_storages_learn_the_same(out, recipe):
    results = [run(replace(recipe, storage=way), out, progress=False) for way in ("compressed", "masked")]
    assert results[0].test_loss == pytest.approx(results[1].test_loss, rel=1e-3)


@pytest.mark.parametrize("name", ["before training", "augmented", "moving", "in cycles", "dense"])
def test_a_run_that_was_stopped_ends_bit_for_bit_where_it_would_have(out, tmp_path, recipe, name, monkeypatch):
    chosen = replace(recipe, **METHODS[name])
    whole = run(chosen, out, progress=False)
    take_step, left = loop._Run.take_step, iter([7, 4, 1000])

    def stopping(count):
        taken = iter(range(count))

        def step(self, batch):
            if next(taken, None) is None:
                raise KeyboardInterrupt
            take_step(self, batch)

        return step

    for count in left:
        monkeypatch.setattr(loop._Run, "take_step", stopping(count))
        try:
            again = run(chosen, tmp_path, progress=False, checkpoint_steps=2)
        except KeyboardInterrupt:
            assert count < 1000
    states = [load_tensors(each.folder / "model.safetensors")[0] for each in (whole, again)]
    assert same(*states)
    assert any(bool((state != 0).any()) for part, state in states[0].items() if part.endswith("running_mean"))
    assert again.test_loss == whole.test_loss


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = initial_network(NAMED, ENDS, OWN, generator(0, "weights"))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = initial_network(NAMED, ENDS, OWN, generator(0, "weights"))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first.state_dict(), second.state_dict())
    other = initial_network(NAMED, ENDS, OWN, generator(1, "weights"))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    with torch.random.fork_rng():
        torch.manual_seed(generator(0, "weights").initial_seed())
        assert torch.equal(networks.build(NAMED, ENDS).conv1.weight, first.conv1.weight)


@pytest.mark.parametrize("device, dtype", [("meta", torch.float32), ("cpu", torch.float64)])
def test_torchs_defaults_are_the_users_and_change_nothing(device, dtype):
    expected = initial_network("lenet-5-caffe-x0.5", Ends((1, 28, 28), 10), OWN, generator(0, "weights"))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            found = initial_network("lenet-5-caffe-x0.5", Ends((1, 28, 28), 10), OWN, generator(0, "weights"))
    finally:
        torch.set_default_dtype(before)
    assert {each.dtype for each in found.parameters()} == {torch.float32}
    assert {each.device.type for each in found.parameters()} == {"cpu"}
    assert [each.shape for each in found.parameters()] == [each.shape for each in expected.parameters()]


@pytest.mark.parametrize("name, variance", [("lecun", 1.0), ("kaiming", 2.0), ("torch", 1 / 3)])
def test_an_initialiser_draws_every_prunable_weight_by_its_fan_in(name, variance):
    model = initial_network("lenet-5-caffe", Ends((1, 28, 28), 10), name, generator(0, "weights"))
    for part, layer in matrices(model).items():
        found = float(layer.weight.detach().var()) * layer.in_features
        assert found == pytest.approx(variance, rel=0.2 if layer.weight.numel() < 1000 else 0.05), part
    assert not any(each.any() for part, each in model.named_parameters() if part.endswith("bias"))


def test_the_initialiser_is_the_networks_own_unless_it_is_given():
    assert Recipe(model=NAMED).initialiser == "own"
    assert repr(Recipe(model=NAMED)) == f"Recipe(model={NAMED!r})"
    assert Recipe.from_dict(Recipe(model=NAMED).to_dict()) == Recipe(model=NAMED)
    assert Recipe(model=NAMED, initialiser="kaiming").twin().initialiser == "kaiming"
    assert Recipe().initialiser == "lecun"
    with pytest.raises(InvalidInput, match="one of lecun"):
        Recipe(initialiser="own")
    with pytest.raises(InvalidInput, match="vgg-16"):
        Recipe(model="vgg-15")


def test_a_network_that_the_data_do_not_fit_is_refused(tmp_path, recipe):
    with pytest.raises(InvalidInput, match="too small"):
        run(replace(recipe, model="lenet-5-caffe"), tmp_path, progress=False)


def test_aims_are_measured_of_convolutions(out, recipe):
    aims = run(replace(recipe, method="random"), out, progress=False, aims=True).aims
    assert aims.second_order is not None
    assert aims.second_order != aims.first_order
    assert min(aims.loss, aims.gradient_norm, aims.singular_value, aims.ntk_trace) > 0


def test_what_can_be_pruned_is_told_before_anything_is_trained():
    assert weight_shapes(NETWORK, ENDS) == weight_shapes("nets_of_a_recipe:alone", ENDS) == SHAPES
    shapes = weight_shapes(NAMED, Ends((1, 8, 8), 10))
    assert len(shapes) == 20
    assert shapes["blocks.8.conv2.linear"] == (16, 16 * 9)


def test_augmented_images_are_others_and_need_images(out, recipe):
    plain, changed = (run(replace(recipe, augment=augment), out, progress=False) for augment in ("", "crop,flip"))
    assert plain.recipe.digest != changed.recipe.digest
    assert plain.train_loss != changed.train_loss
    assert all(plain.kept()[name].same_as(changed.kept()[name]) for name in SHAPES)  # scores see images as they are
    with pytest.raises(InvalidInput, match="train a network that takes images"):
        run(Recipe(data=recipe.data, model="mlp-16-4-2", augment="flip"), out, progress=False)
    with pytest.raises(InvalidInput, match="some of crop, flip"):
        Recipe(augment="rotate")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", CRITERIA)
def test_scoring_leaves_running_statistics_as_they_are(recipe, method, mode):
    problem = Problem.of(recipe)
    model, plan = build(replace(recipe, method=method, score_mode=mode, score_batch=60), problem.ends, problem.examples)
    assert plan.nnz == round(0.3 * WEIGHTS)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        assert not norm.running_mean.any()
        assert bool((norm.running_var == 1).all())
        assert int(norm.num_batches_tracked) == 0
        assert bool((norm.weight == 1).all())


def test_the_stored_network_computes_what_was_measured(tmp_path, recipe):
    chosen = replace(recipe, validation=0.2)
    result = run(chosen, tmp_path, progress=False)
    problem = Problem.of(chosen)
    assert problem.examples.x.shape == (48, 1, 4, 4)
    found = evaluate(result.model(), problem.evaluation["validation"], batch_size=chosen.batch_size)
    assert found.loss == pytest.approx(result.validation_loss, rel=1e-5)
    assert Plan.load(result.folder / "plan.safetensors").nnz == result.nnz
