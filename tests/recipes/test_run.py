"""A run: its folder, its result, its second time, its twin, its kills."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

import pollard
from pollard.errors import DataError, InvalidInput, PollardError, StoreError
from pollard.formats.store import load_tensors
from pollard.pruning.plan import Plan
from pollard.recipes import Recipe, RunResult, run
from pollard.recipes.folder import PLAN, locked_folder
from pollard.recipes.problem import Problem
from pollard.recipes.run import versions
from pollard.training import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tiny_data):
    return Recipe(data=str(tiny_data), model="mlp-16-32-2", density=0.25, epochs=6, batch_size=8)


def test_the_folder_holds_what_it_promises(tmp_path, recipe):
    result = run(recipe, tmp_path, progress=False)
    folder = tmp_path / recipe.digest
    assert result.folder == folder
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "recipe.json",
        "plan.safetensors",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "model.safetensors",
        "result.json",
    }
    assert Recipe.read(folder / "recipe.json") == recipe
    assert len(read_metrics(folder / "metrics.jsonl")) == 6
    assert RunResult.read(folder) == result
    tensors, metadata = load_tensors(folder / "model.safetensors")
    assert metadata["recipe"] == recipe.to_dict()
    assert tensors["fc1.values"].shape == (Plan.load(folder / "plan.safetensors")["fc1"].nnz,)


@pytest.mark.parametrize("wanted", ["its own", "by a run from its weights"])
def test_a_finished_run_whose_network_is_gone_says_how_to_have_it_again(tmp_path, recipe, wanted):
    dense = replace(recipe.twin(), epochs=2)
    result = run(dense, tmp_path, progress=False)
    expected = (result.folder / "model.safetensors").read_bytes()
    (result.folder / "model.safetensors").unlink()
    after = replace(recipe, epochs=2, method="static", criterion="magnitude", score_at=2.0)
    with pytest.raises(
        StoreError, match=r"network is gone.*model\.safetensors.*Remove result\.json.*run the recipe again"
    ):
        result.model() if wanted == "its own" else run(after, tmp_path, progress=False)
    (result.folder / "result.json").unlink()
    again = run(dense, tmp_path, progress=False)
    assert (again.folder / "model.safetensors").read_bytes() == expected
    assert again.model() is not None


def test_the_result_adds_up(tmp_path, recipe):
    result = run(recipe, tmp_path, progress=False)
    told = json.loads((result.folder / "result.json").read_text())
    assert told["run"] == recipe.digest
    assert told["recipe"] == recipe.to_dict()
    assert told["test_accuracy"] == result.test_accuracy > 0.9
    assert result.weights == 16 * 32 + 32 * 2
    assert result.nnz == round(0.25 * result.weights)
    assert result.density == result.nnz / result.weights
    assert result.bytes.values == 4 * result.nnz
    assert result.bytes.optimizer == result.bytes.gradients == 4 * (result.nnz + 34)
    assert 0 < result.baseline_rss_bytes <= result.peak_rss_bytes
    assert result.seconds_per_step > 0
    assert (result.epochs, result.steps) == (6, 6 * 8)
    assert {"torch", "python"} <= set(result.versions)
    assert result.versions["pollard"] == pollard.__version__
    assert result.dense is None


def test_a_source_tree_that_nobody_installed_has_a_version(monkeypatch):
    def installed(name):
        if name == "pollard":
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr("importlib.metadata.distribution", installed)
    assert versions()["pollard"] == pollard.__version__
    assert pollard.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("method", ["random", "rigl"])
def test_outputs_that_keep_no_weight_are_counted_whether_the_topology_moves_or_not(tmp_path, recipe, method):
    # A fifth of a weight for each row, so that some have none.
    result = run(replace(recipe, method=method, density=0.02, allocation="uniform", epochs=1), tmp_path, progress=False)
    plan = result.kept()
    assert result.dead_neurons == sum(int((~plan[name].mask().any(1)).sum()) for name in plan) > 0


def test_the_second_time_reports_what_is_there(tmp_path, recipe):
    first = run(recipe, tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir() if path.name != ".lock"}
    second = run(recipe, tmp_path, progress=False)
    assert not first.reused
    assert second.reused
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("lost", ["result.json", "model.safetensors result.json", "plan.safetensors result.json"])
def test_what_is_lost_is_made_again(tmp_path, recipe, lost):
    first = run(recipe, tmp_path, progress=False)
    model = (first.folder / "model.safetensors").read_bytes()
    for name in lost.split():
        (first.folder / name).unlink()
    again = run(recipe, tmp_path, progress=False)
    assert again.test_accuracy == first.test_accuracy
    assert (first.folder / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    "changed", [{"method": "random", "pattern": "v2"}, {"method": "magnitude"}, {"validation": 0.2}]
)
def test_every_kind_of_run_goes_through(tmp_path, recipe, changed):
    result = run(replace(recipe, epochs=2, **changed), tmp_path, progress=False)
    assert result.nnz == round(0.25 * result.weights)
    assert (result.validation_accuracy is not None) == ("validation" in changed)


def test_held_out_examples_are_not_trained_on_and_other_seeds_hold_out_others(recipe):
    whole, split = Problem.of(recipe), Problem.of(replace(recipe, validation=0.25))
    held_out = split.evaluation["validation"]
    assert len(held_out.x) == round(0.25 * len(whole.examples.x))
    both = torch.cat([split.examples.x, held_out.x])
    assert sorted(both.tolist()) == sorted(whole.examples.x.tolist())
    assert torch.equal(split.evaluation["test"].x, whole.evaluation["test"].x)
    other = Problem.of(replace(recipe, validation=0.25, seed=recipe.seed + 1))
    assert not torch.equal(other.evaluation["validation"].x, held_out.x)


def test_a_masked_run_ends_where_the_compressed_one_does(tmp_path, recipe):
    sparse = run(recipe, tmp_path, progress=False)
    masked = run(replace(recipe, storage="masked"), tmp_path, progress=False)
    assert masked.test_loss == pytest.approx(sparse.test_loss, rel=1e-3)
    assert masked.bytes.values == 0
    assert masked.bytes.dense > sparse.bytes.values


def test_the_dense_twin_runs_in_its_own_process_and_folder(tmp_path, recipe):
    result = run(recipe, tmp_path, progress=False, compare="dense")
    twin = RunResult.read(tmp_path / recipe.twin().digest)
    assert result.dense == json.loads(json.dumps(twin.to_dict()))
    assert (twin.density, twin.bytes.dense) == (1.0, 4 * (twin.weights + 34))
    assert run(recipe, tmp_path, progress=False, compare="dense").reused
    assert run(recipe, tmp_path, progress=False).dense == result.dense


def test_a_twin_that_fails_leaves_the_result(tmp_path, recipe):
    run(recipe, tmp_path, progress=False)
    with locked_folder(recipe.twin(), tmp_path), pytest.raises(PollardError, match="dense twin"):
        run(recipe, tmp_path, progress=False, compare="dense")
    assert run(recipe, tmp_path, progress=False).reused


def test_two_runs_of_one_recipe_do_not_meet(tmp_path, recipe):
    with locked_folder(recipe, tmp_path), pytest.raises(StoreError, match="in use by another process"):
        run(recipe, tmp_path, progress=False)


def test_an_out_that_is_a_file_is_a_store_error(tmp_path, recipe):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="another output folder"):
        run(recipe, tmp_path / "file", progress=False)


def test_a_damaged_result_is_told(tmp_path, recipe):
    folder = run(recipe, tmp_path, progress=False).folder
    for content in ("{", "[]", "{}"):
        (folder / "result.json").write_text(content)
        with pytest.raises(StoreError, match=r"result\.json"):
            run(recipe, tmp_path, progress=False)


def test_bad_data_and_models_are_told(tmp_path, recipe):
    with pytest.raises(DataError):
        run(replace(recipe, data="no-such-data"), tmp_path, progress=False)
    with pytest.raises(InvalidInput, match="Use 'mlp-16-32-2'"):
        run(replace(recipe, model="mlp-784-32-2"), tmp_path, progress=False)
    with pytest.raises(InvalidInput, match="at least one example on each side"):
        run(replace(recipe, validation=0.001), tmp_path, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        ["--epochs=20"],
        ["--epochs=3", "--model=resnet-20-x0.25", "--augment=crop,flip", "--method=rigl", "--update-every=2"],
    ],
    ids=["of linear layers", "of convolutions"],
)
def test_kills_at_random_moments_change_nothing(tiny_data, what):
    options = ["--kills=3", "--seed=1", "--checkpoint-steps=1", f"--data={tiny_data}", *what]
    script = ROOT / "scripts" / "kill_and_resume.py"
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 kills" in done.stdout.splitlines()[-1]


def test_a_run_whose_topology_moves_shows_what_it_keeps_in_the_end(tmp_path):
    recipe = Recipe(method="rigl", density=0.2, update_every=5, epochs=2, batch_size=64, model="mlp-64-32-10")
    result = run(recipe, tmp_path, progress=False)
    first, last = Plan.load(result.folder / PLAN), result.kept()
    assert last.nnz == first.nnz == result.nnz
    assert not all(last[name].same_as(first[name]) for name in first)
    assert all(last[name].same_as(layer.topology) for name, layer in result.model().named_children() if name in last)
    assert result.explored_rate > result.density
    assert result.training_flops > result.density
    assert run(recipe.twin(), tmp_path, progress=False).kept() is None
    still = run(Recipe(method="random", density=0.2, epochs=1, model="mlp-64-32-10"), tmp_path, progress=False)
    assert still.kept().nnz == still.nnz


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_a_run_in_another_precision_learns_and_is_made_again_to_the_bit(tmp_path, recipe, precision):
    recipe = replace(recipe, precision=precision, score_at=2, weights_at=1, cycles=2)
    first = run(recipe, tmp_path, progress=False, aims=True)
    assert first.test_accuracy > 0.9
    held = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {parameter.dtype for parameter in first.model().parameters()} == {held}
    model = (first.folder / "model.safetensors").read_bytes()
    # The last cycle alone: it scores what the one before has left in its file.
    for path in first.folder.iterdir():
        if path.is_file():
            path.unlink()
    again = run(recipe, tmp_path, progress=False)
    assert again.test_loss == first.test_loss
    assert (first.folder / "model.safetensors").read_bytes() == model
