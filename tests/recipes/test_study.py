"""What the file of a study means, and what a folder of one holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pollard.errors import InvalidInput, StoreError
from pollard.recipes.points import points
from pollard.recipes.study import Series, Study, read_ledger

STUDIES = Path(__file__).parents[2] / "studies"
RECORDS = STUDIES / "results"


def test_a_file_is_a_grid_for_each_series(study):
    runs = study.runs()
    assert [run.label for run in runs] == ["dense"] * 2 + ["SNIP"] * 4 + ["after training"] * 4
    assert [run.recipe.density for run in runs[2:6]] == [0.5, 0.5, 0.25, 0.25]
    assert len({run.recipe.digest for run in runs}) == 10
    assert {recipe.digest for recipe in study.recipes()} == {run.recipe.digest for run in runs}


def test_seeds_are_run_one_after_the_other_each_with_what_others_take_weights_from_first(study):
    order = [(recipe.seed, recipe.method) for recipe in study.recipes()]
    each = ["dense", "snip", "snip", "magnitude", "magnitude"]
    assert order == [(seed, method) for seed in (0, 1) for method in each]
    backwards = replace(study, grid={"seed": [7, 3], "density": [0.5]})
    assert [recipe.seed for recipe in backwards.recipes()] == [7, 7, 7, 3, 3, 3]  # as the file says, not by size


def test_what_a_run_takes_weights_from_is_run_though_no_series_asks_for_it(study):
    alone = replace(study, series=[study.series[2]])
    assert [recipe.method for recipe in alone.recipes()].count("dense") == 2
    assert {run.label for run in alone.runs()} == {"after training"}


@pytest.mark.parametrize("record", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_recorded_is_what_its_file_asks_for(record):
    # Also where a default has changed since: the file then says what it was.
    asked = {(planned.label, planned.recipe.digest) for planned in Study.read(STUDIES / f"{record.stem}.toml").runs()}
    recorded = {(point["label"], point["run"]) for point in json.loads(record.read_text())}
    assert recorded == asked


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[grid]", "[gird]", "'gird'.*Did you mean 'grid'"),
        ("density = [0.5, 0.25]", "density = 0.5", r"\[grid\], density = 0.5.*a list of values"),
        ("density = [0.5, 0.25]", "density = []", "a list of values"),
        ("density = [0.5, 0.25]", "densty = [0.5]", "'densty'.*Did you mean density"),
        ("density = [0.5, 0.25]", "density = [2.0]", "density 2.0"),
        ('label = "SNIP"\n\n[[series]]', "[[series]]", r"a \[\[series\]\] of .*expected a label"),
        ('source = "a paper"', "", "without source"),
        ('source = "a paper"', 'sauce = "a paper"', "'sauce'.*Did you mean 'source'"),
        ('method = "magnitude"', 'method = "magnitud"', "Did you mean 'magnitude'"),
        ("epochs = 2", "epochs = 2 2", "a study as TOML"),
        ('label = "SNIP"', 'label = "dense"', "two series labelled 'dense'"),
        ("test_accuracy = 0.9", 'test_accuracy = "0.9"', "a fraction in"),
        ("test_accuracy = 0.9", "test_accuracy = 90", "98 % is 0.98"),
        ("[[published]]", "[published]", r"tables \[\[published\]\]"),
        ("[grid]", "[[grid]]", r"a table \[grid\]"),
        ("[recipe]", "[[recipe]]", r"a table \[recipe\]"),
    ],
)
def test_what_cannot_be_understood_is_named(file, old, new, message):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidInput, match="(?s)" + message) as caught:
        Study.read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["series = []", 'series = ["snip"]', "series = 3", "recipe = 3", "grid = 3"])
def test_what_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=f"{text.split()[0]} = .*expected (a table|tables)"):
        Study.read(path)


def test_what_varies_besides_density_and_seed_is_another_series(study):
    varied = replace(study, grid={"density": [0.5], "lr": [0.1, 0.01], "seed": [0]})
    assert [run.label for run in varied.runs() if "SNIP" in run.label] == ["SNIP, lr 0.1", "SNIP, lr 0.01"]
    fixed = replace(varied, series=[Series("SNIP", {"lr": 0.3})])
    assert [run.label for run in fixed.runs()] == ["SNIP"]


def test_a_label_may_have_a_series_of_its_own_for_each_density(file):
    text = file.read_text().replace('label = "SNIP"\n', 'label = "SNIP"\ndensity = 0.5\nepochs = 3\n', 1)
    more = '[[series]]\nlabel = "SNIP"\ndensity = {}\nepochs = 1\n'
    file.write_text(text + more.format(0.25))
    found = [(run.recipe.density, run.recipe.epochs) for run in Study.read(file).runs() if run.label == "SNIP"]
    assert found == [(0.5, 3)] * 2 + [(0.25, 1)] * 2
    for density in ("0.5", "0.50"):
        file.write_text(text + more.format(density))
        with pytest.raises(InvalidInput, match=r"two series labelled 'SNIP'.*a density of its own"):
            Study.read(file)


def test_a_run_says_of_which_series_it_is(study, tmp_path):
    varied = replace(study, grid={"density": [0.5], "lr": [0.1, 0.01], "seed": [0]}, series=[Series("SNIP")])
    assert [run.series for run in varied.runs()] == ["SNIP", "SNIP"]
    varied.save(tmp_path)
    assert [run["series"] for run in read_ledger(tmp_path)["runs"]] == ["SNIP", "SNIP"]


def test_a_folder_is_of_one_study(study, tmp_path):
    study.save(tmp_path)
    study.save(tmp_path)
    with pytest.raises(InvalidInput, match="holds the study 'Halves'"):
        replace(study, title="Quarters").save(tmp_path)
    assert read_ledger(tmp_path)["title"] == "Halves"


def test_an_out_that_cannot_be_a_folder_is_told(study, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="another output folder"):
        study.save(tmp_path / "file")


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"title": "x", "runs": [{"label": "a", "run": "b", "series": 3}], "published": []}',
        '{"title": "x", "runs": 3}',
        '{"title": "x", "runs": [{}]}',
        "[]",
        "nonsense",
    ],
)
def test_a_ledger_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(StoreError):
        points(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidInput, match="a study as TOML"):
        Study.read(tmp_path / "none.toml")


def test_runs_in_different_precisions_are_not_averaged():
    grid = {"density": [0.1], "seed": [0, 1], "precision": ["float32", "autocast", "bfloat16"]}
    found = Study("precisions", {}, grid, [Series("SNIP")]).runs()
    assert {run.label for run in found} == {f"SNIP, precision {precision}" for precision in grid["precision"]}
    assert len({run.recipe.digest for run in found}) == 6
