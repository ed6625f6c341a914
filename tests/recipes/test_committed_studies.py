"""The studies behind docs/, at a size that takes seconds: every series of every file, on digits, in linear layers or as images."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch

from pollard import networks
from pollard.errors import LayerCollapse
from pollard.formats.pattern import Pattern
from pollard.networks import is_fully_connected
from pollard.recipes import run
from pollard.recipes.build import layer_patterns
from pollard.recipes.models import prunable_shapes
from pollard.recipes.points import failures, points
from pollard.recipes.study import Series, Study
from pollard.report.accuracy import labels
from pollard.report.correlation import AIMS
from pollard.training.methods import METHODS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "studies").glob("*.toml"))
SHAPES = {"cifar-10": (3, 32, 32), "digits": (1, 8, 8)}
EPOCHS = 2
SMALL = {"data": "digits", "epochs": EPOCHS}
LOOKED_AT = 20  # examples, to score and to measure aims
LINEAR, IMAGES = "mlp-64-32-16-10", "networks:residual"


def shrunk(study):
    """The same series on a small network, epochs in proportion, few examples to score, at one density and seed."""

    def fields(given):
        scale = EPOCHS / given.get("epochs", study.recipe.get("epochs", EPOCHS))
        # An epoch of so few examples has few steps: a moment within it is after one at least.
        epochs = {name: max(value * scale, 0.1) for name, value in given.items() if name.endswith("_at") and value > 0}
        # A run of few steps has few between its updates.
        moves = "every" in signature(METHODS.get(given.get("method", ""), dict.fromkeys)).parameters
        often = {"update_every": 5} if moves else {}
        few = {"score_batch": min(given["score_batch"], LOOKED_AT)} if "score_batch" in given else {}
        kept = {name: value for name, value in given.items() if name not in (*SMALL, "model", "density")}
        return kept | epochs | often | few

    model = LINEAR if is_fully_connected(study.recipe.get("model", LINEAR)) else IMAGES
    series = [Series(one.label, fields(one.fields)) for one in study.series]
    # One title: all of them share a folder, and the runs they have in common.
    return replace(
        study,
        title="small",
        recipe=fields(study.recipe) | SMALL | {"model": model},
        grid={"density": [0.2], "seed": [0]},
        series=series,
    )


@pytest.mark.parametrize(
    ("name", "weights"),
    [("strided", 245_936), ("resnet_20", 67_352), ("vgg_16", 921_008)],
    ids=str,
)
def test_networks_of_the_studies_are_as_large_as_they_say(name, weights, monkeypatch):
    monkeypatch.chdir(ROOT)
    model = networks.build(f"studies.networks:{name}", networks.Ends(input_shape=(3, 32, 32), classes=10))
    assert sum(each.numel() for each in model.parameters() if each.dim() > 1) == weights
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    function = networks.function_named("studies.networks", name, "a network")
    assert f"{weights:,} weights" in function.__doc__


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_networks_and_patterns_of_a_committed_study_are_there(file, monkeypatch):
    """Every grain divides every layer but the last, which is what the studies of grains compare."""
    monkeypatch.chdir(ROOT)
    for recipe in Study.read(file).recipes():
        shape = (784,) if is_fully_connected(recipe.model) else SHAPES.get(recipe.data, (1, 28, 28))
        model = networks.build(recipe.model, networks.Ends(input_shape=shape, classes=10))
        if recipe.pattern != "unstructured":
            *inner, _ = layer_patterns(recipe.pattern, prunable_shapes(model)).values()
            assert {str(each) for each in inner} == {str(Pattern.parse(recipe.pattern))}


@pytest.mark.parametrize(
    ("name", "timed_in", "steps", "seconds", "within"),
    [
        ("grain-time", "grain-linear", 600, 18.3, 0.06),
        ("grain-time-convolutions", "grain-convolutions", 391, 92.3, 0.081),
    ],
)
def test_grains_in_equal_time_train_for_as_many_epochs_as_were_timed_to_fit(name, timed_in, steps, seconds, within):
    timed = json.loads((ROOT / "benchmarks" / "records" / "grains.json").read_text())
    rows = {(row["label"], row["density"]): row["ms"] for row in timed if row["study"] == timed_in}
    planned = Study.read(ROOT / "studies" / f"{name}.toml").runs()
    assert {(each.label, each.recipe.density) for each in planned} == {cell for cell in rows if cell[1] != 0.02}
    for each in planned:
        an_epoch = steps * rows[each.label, each.recipe.density] / 1e3
        assert each.recipe.epochs == round(seconds / an_epoch)
        assert each.recipe.epochs * an_epoch == pytest.approx(seconds, rel=within)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_series_of_a_committed_study_runs(file, out, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")  # where the module of the small network is, for processes of their own too
    monkeypatch.setattr(import_module("pollard.recipes.run"), "MEASURED_ON", LOOKED_AT)
    study = shrunk(Study.read(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapse)  # SynFlow in one round collapses: that is its point
        for recipe in study.recipes():
            run(recipe, out, progress=False, aims=study.aims)
    study.save(out)
    assert failures(out) == {}
    found = points(out)
    assert labels(found) == list(dict.fromkeys(one.label for one in study.series))
    assert len({point["run"] for point in found}) == len({run.recipe.digest for run in study.runs()})
    for point in found:
        pruned = point["method"] != "dense"
        assert point["kept_density"] == pytest.approx(0.2 if pruned else 1.0, abs=1e-3)
        measured = pruned and study.aims
        # Shrunk, studies may share a run, of which another may have asked for aims.
        assert not measured or point["aims"] is not None
        assert pruned or point["aims"] is None
        assert not measured or AIMS.keys() <= point["aims"].keys() | {"trainability"}
