"""From flags to a run folder, and back to figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import invoke
from pollard.pruning.plan import Plan
from pollard.recipes import Recipe

QUICK = ["--epochs", "2", "--model", "mlp-64-24-10"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(out):
    return json.loads(invoke("train", *QUICK, "--density", "0.25", "--out", str(out), "--json").stdout)


def test_json_holds_the_result_and_says_where_it_is(finished, out):
    recipe = Recipe(epochs=2, model="mlp-64-24-10", density=0.25)
    assert finished["folder"] == str(out / recipe.digest)
    assert finished["density"] == pytest.approx(0.25, abs=1e-3)
    assert finished["nnz"] == round(0.25 * (64 * 24 + 24 * 10))
    assert finished["test_accuracy"] > 0.3
    assert min(finished["peak_rss_bytes"], finished["seconds_per_step"]) > 0
    stored = json.loads((out / recipe.digest / "result.json").read_text())
    assert {name: finished[name] for name in stored} == stored
    assert not finished["reused"]
    covered = finished["coverage"]
    assert (covered["sparse"], covered["layers"], covered["left"]) == (2, 2, {})
    assert covered["parameters"] == 64 * 24 + 24 * 10 + 34
    assert covered["kept"] == finished["nnz"]
    assert covered["model_density"] == pytest.approx((covered["kept"] + 34) / covered["parameters"])


def test_the_plot_is_in_the_run_folder(finished):
    assert Path(finished["plot"]).parent == Path(finished["folder"])
    assert Path(finished["plot"]).read_text().startswith("<svg")


def test_the_same_command_again_reports_what_is_there(finished, out):
    again = json.loads(invoke("train", *QUICK, "--density", "0.25", "--out", str(out), "--json").stdout)
    assert again["reused"]
    assert again | {"reused": False} == finished


def test_people_see_the_plan_the_figures_and_a_plot(tmp_path):
    shown = invoke("train", *QUICK, "--out", str(tmp_path)).stdout
    for part in ("fc1", "test accuracy", "peak RSS", "a step", "snip, 10 % kept", "└─", "plot.svg"):
        assert part in shown


def test_the_dense_twin_stands_beside(tmp_path, capfd):
    shown = invoke("train", *QUICK, "--out", str(tmp_path), "--compare", "dense").stdout
    assert "dense twin" in shown
    assert "dense / sparse" in shown
    assert len(list(tmp_path.glob("*/result.json"))) == 2
    [plot] = tmp_path.glob("*/plot.svg")
    assert "dense twin" in plot.read_text()
    # The twin's process shares standard output with whoever reads the answer, and must leave it alone.
    assert capfd.readouterr().out == ""


def test_another_method_than_a_files_brings_its_own_defaults(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('epochs = 1\nmodel = "mlp-64-16-10"\nmethod = "snip"\n')
    words = ("train", "--recipe", str(file), "--method", "magnitude", "--out", str(tmp_path), "--json")
    assert json.loads(invoke(*words).stdout)["recipe"]["allocation"] == "erk"


def test_a_recipe_file_gives_way_to_options(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(Recipe(epochs=1, model="mlp-64-16-10", method="magnitude", density=0.5).to_toml())
    told = json.loads(
        invoke("train", "--recipe", str(file), "--density", "0.125", "--out", str(tmp_path), "--json").stdout
    )
    assert told["recipe"]["method"] == "magnitude"
    assert told["recipe"]["model"] == "mlp-64-16-10"
    assert told["recipe"]["density"] == 0.125


def test_a_dense_run_has_no_plan_to_show(tmp_path):
    shown = invoke("train", *QUICK, "--method", "dense", "--out", str(tmp_path)).stdout
    assert "Plan" not in shown
    assert "dense" in shown


def test_prune_prints_a_plan_and_saves_it(tmp_path):
    file = tmp_path / "plan.safetensors"
    words = ["prune", "--model", "mlp-64-24-10", "--density", "0.25", "--save", str(file)]
    told = json.loads(invoke(*words, "--json").stdout)
    plan = Plan.load(file)
    assert told["nnz"] == plan.nnz == round(0.25 * told["weights"])
    assert {name: layer["fingerprint"] for name, layer in told["layers"].items()} == {
        name: topology.fingerprint for name, topology in plan.items()
    }
    assert told["coverage"]["kept"] == plan.nnz == plan.coverage.kept
    shown = invoke(*words).stdout
    assert "fc2" in shown
    assert "sparse 2 of 2 weight layers" in shown.replace("\n", " ")


def test_prune_decides_what_train_decides(tmp_path):
    told = json.loads(invoke("prune", *QUICK[2:], "--pattern", "v4", "--json").stdout)
    run = json.loads(invoke("train", *QUICK, "--pattern", "v4", "--out", str(tmp_path), "--json").stdout)
    trained = Plan.load(Path(run["folder"]) / "plan.safetensors")
    assert {name: layer["fingerprint"] for name, layer in told["layers"].items()} == {
        name: topology.fingerprint for name, topology in trained.items()
    }


@pytest.mark.parametrize(("precision", "size"), [("autocast", 4), ("bfloat16", 2)])
def test_a_precision_is_an_experiment_of_its_own(tmp_path, precision, size):
    words = ("train", *QUICK, "--precision", precision, "--out", str(tmp_path))
    told = json.loads(invoke(*words, "--json").stdout)
    assert told["recipe"]["precision"] == precision
    assert told["run"] == Recipe(epochs=2, model="mlp-64-24-10", precision=precision).digest
    assert told["bytes"]["values"] == size * told["nnz"]
    assert told["bytes"]["optimizer"] == told["bytes"]["gradients"] == size * (told["nnz"] + 34)
    assert f"mlp-64-24-10 on digits in {precision}" in invoke(*words).stdout
