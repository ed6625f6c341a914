"""The studies behind docs/, at a size that takes seconds: every series of every file, on digits, in linear layers or as images."""

from __future__ import annotations

import warnings
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest

from pollard.errors import LayerCollapse
from pollard.networks import is_fully_connected
from pollard.recipes import run
from pollard.recipes.points import failures, points
from pollard.recipes.study import Series, Study
from pollard.report.accuracy import labels
from pollard.report.correlation import AIMS
from pollard.training.methods import METHODS

FILES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
EPOCHS = 2
SMALL = {"data": "digits", "epochs": EPOCHS}
LINEAR, IMAGES = "mlp-64-32-16-10", "resnet-20-x0.25"


def shrunk(study):
    """The same series on a small network, epochs in proportion, at one density and seed."""

    def fields(given):
        scale = EPOCHS / given.get("epochs", study.recipe["epochs"])
        epochs = {name: value * scale for name, value in given.items() if name.endswith("_at") and value > 0}
        # A run of few steps has few between its updates.
        moves = "every" in signature(METHODS.get(given.get("method", ""), dict.fromkeys)).parameters
        often = {"update_every": 5} if moves else {}
        return {name: value for name, value in given.items() if name not in (*SMALL, "model")} | epochs | often

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


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_series_of_a_committed_study_runs(file, out):
    study = shrunk(Study.read(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapse)  # SynFlow in one round collapses: that is its point
        for recipe in study.recipes():
            run(recipe, out, progress=False, aims=study.aims)
    study.save(out)
    assert failures(out) == {}
    found = points(out)
    assert labels(found) == [one.label for one in study.series]
    assert len({point["run"] for point in found}) == len({run.recipe.digest for run in study.runs()})
    for point in found:
        pruned = point["method"] != "dense"
        assert point["kept_density"] == pytest.approx(0.2 if pruned else 1.0, abs=1e-3)
        measured = pruned and study.aims
        assert measured == (point["aims"] is not None)
        assert not measured or AIMS.keys() <= point["aims"].keys() | {"trainability"}
