"""What a run stands on can be cited."""

from __future__ import annotations

import pytest

from pollard.pruning import ALLOCATIONS, CRITERIA
from pollard.pruning.citations import citations, cited
from pollard.recipes.recipe import REPAIRS, Recipe
from pollard.report import sources as module
from pollard.report.sources import sources

UNPUBLISHED = {"random"}


@pytest.mark.parametrize("method", sorted(CRITERIA))
def test_every_criterion_has_a_source(method):
    keys = sources(Recipe(method=method, allocation="uniform").to_dict())
    assert bool(keys) == (method not in UNPUBLISHED)
    assert set(keys) <= citations().keys()


def test_names_of_allocations_and_repairs_are_those_that_there_are():
    assert module.ALLOCATIONS.keys() <= ALLOCATIONS.keys()
    assert module.REPAIRS.keys() == set(REPAIRS)
    assert {*module.ALLOCATIONS.values(), *module.REPAIRS.values()} <= citations().keys()


def test_each_entry_is_there_once_and_whole():
    text = cited(["lee2019snip", "", "lee2019snip", "wang2020grasp"])
    assert text.count("@") == 2
    assert all(entry.count("{") == entry.count("}") for entry in citations().values())
    assert all("title" in entry and "year" in entry for entry in citations().values())


@pytest.mark.parametrize(
    "fields, key",
    [
        ({"score_at": 20, "weights_at": 0.0, "cycles": 4}, "frankle2019lottery"),
        ({"score_at": 20, "weights_at": 1.0}, "frankle2020linear"),
        ({"score_at": 20}, "renda2020comparing"),
        ({"ablation": "shuffle"}, "frankle2021pruning"),
        ({"repair": "isometry"}, "lee2020signal"),
        ({"repair": "orthogonal"}, "nowak2024sparser"),
        ({"repair": "refit"}, "frantar2023sparsegpt"),
        ({"allocation": "smart-ratio"}, "su2020sanity"),
    ],
)
def test_pipelines_have_sources_too(fields, key):
    assert key in sources(Recipe(method="magnitude", **fields).to_dict())
    assert key not in sources(Recipe(method="magnitude").to_dict())
    assert key in citations()


def test_a_dense_run_stands_on_nothing():
    assert sources(Recipe(method="dense").to_dict()) == []
