"""Studies: what a file means, that every run happens once, and that stopping them loses nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pollard.errors import InvalidInput, StoreError
from pollard.recipes import Recipe, RunResult, run
from pollard.recipes.engines import local, run_study
from pollard.recipes.engines.execution import execute, fail, has_failed, is_finished
from pollard.recipes.folder import FAILURE
from pollard.recipes.points import failures, points
from pollard.recipes.study import Series, Study, read_ledger

STUDIES = Path(__file__).parents[2] / "studies"
RECORDS = STUDIES / "results"
# Studies of which not every run has been made: what is said of them names the seeds and densities that were.
UNDER_WAY = {"cifar-resnet-20"}

STUDY = """
title = "Halves"

[recipe]
data = "{data}"
model = "mlp-16-32-2"
batch_size = 8
epochs = 2

[grid]
density = [0.5, 0.25]
seed = [0, 1]

[[series]]
label = "dense"
method = "dense"

[[series]]
label = "SNIP"

[[series]]
label = "after training"
method = "magnitude"
score_at = 2

[[published]]
label = "SNIP"
density = 0.5
test_accuracy = 0.9
source = "a paper"
"""


@pytest.fixture
def file(tiny_data, tmp_path):
    path = tmp_path / "halves.toml"
    path.write_text(STUDY.format(data=tiny_data))
    return path


@pytest.fixture
def study(file):
    return Study.read(file)


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
    assert recorded <= asked
    assert (recorded < asked) == (record.stem in UNDER_WAY)


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


def test_a_study_runs_each_recipe_once_as_run_does(study, tmp_path):
    out, told = tmp_path / "out", []
    assert run_study(study, out, workers=2, on_done=told.append) == []
    assert sorted(outcome.run for outcome in told) == sorted(recipe.digest for recipe in study.recipes())
    found = points(out)
    assert [(p["label"], p["density"], p["seed"]) for p in found] == [
        (run.label, run.recipe.density, run.recipe.seed) for run in study.runs()
    ]
    for planned, point in zip(study.runs(), found, strict=True):
        result = run(planned.recipe, tmp_path / "alone", progress=False, threads=1, aims=True)
        assert point["test_loss"] == result.test_loss
        assert point["aims"] == (None if result.aims is None else json.loads(json.dumps(_fields(result.aims))))
        assert (point["aims"] is None) == (planned.recipe.method == "dense")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = []
    assert run_study(study, out, workers=2, on_done=again.append) == again == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _fields(aims):
    return {name: getattr(aims, name) for name in aims.__slots__}


def test_runs_share_the_cores_that_the_process_may_use_not_those_of_the_machine(study, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert local.cores() == 1
    one = replace(study, grid={"density": [0.5], "seed": [0]}, series=study.series[1:2], aims=False)
    assert run_study(one, tmp_path, workers=1) == []
    assert [RunResult.read(tmp_path / recipe.digest).threads for recipe in one.recipes()] == [1]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert local.cores() == 8


def test_the_ledger_says_what_was_planned(study, tmp_path):
    study.save(tmp_path)
    ledger = read_ledger(tmp_path)
    assert ledger["title"] == "Halves"
    assert set(ledger["first"]) == {run.recipe.digest for run in study.runs() if run.label == "dense"}
    assert [run["run"] for run in ledger["runs"]] == [run.recipe.digest for run in study.runs()]
    assert ledger["published"][0]["test_accuracy"] == 0.9
    assert points(tmp_path) == []


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StoreError):
        points(tmp_path)


def test_a_result_without_aims_is_completed_without_training_again(tiny_data, tmp_path):
    recipe = Recipe(data=str(tiny_data), model="mlp-16-32-2", epochs=2, batch_size=8, density=0.5)
    first = run(recipe, tmp_path, progress=False)
    assert not is_finished(tmp_path, recipe)
    model = (first.folder / "model.safetensors").stat().st_mtime_ns
    execute(recipe.to_dict(), str(tmp_path), 1)
    assert is_finished(tmp_path, recipe)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == model


def test_a_study_that_wants_no_aims_measures_none(study, tmp_path):
    (planned,) = replace(study, series=[study.series[1]], grid={"density": [0.5], "seed": [0]}).runs()
    without = replace(study, series=[study.series[1]], grid={"density": [0.5], "seed": [0]}, aims=False)
    assert run_study(without, tmp_path, workers=1) == []
    assert RunResult.read(tmp_path / planned.recipe.digest).aims is None
    assert is_finished(tmp_path, planned.recipe, aims=False)
    assert not is_finished(tmp_path, planned.recipe)


def test_aims_are_true_or_false(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text("aims = false\n[grid]\nseed = [0]\n", "utf-8")
    assert Study.read(file).aims is False
    file.write_text("aims = 1\n", "utf-8")
    with pytest.raises(InvalidInput, match="true or false"):
        Study.read(file)


def failing(study):
    """One run of it cannot work: the model's input does not fit the data."""
    return replace(study, series=[*study.series, Series("broken", {"model": "mlp-17-32-2"})])


def test_success_after_a_failure_leaves_no_failure(study, tmp_path):
    (planned,) = replace(study, series=[study.series[1]], grid={"density": [0.5], "seed": [0]}).runs()
    fail(tmp_path, planned.recipe.digest, "was out of memory")
    assert has_failed(tmp_path, planned.recipe)
    run(planned.recipe, tmp_path, progress=False, aims=True)
    assert not has_failed(tmp_path, planned.recipe)


def test_a_damaged_result_is_a_failure_among_others_that_are_shown(study, tmp_path):
    few = replace(study, series=[study.series[1]], grid={"density": [0.5], "seed": [0, 1]})
    assert run_study(few, tmp_path, workers=1) == []
    damaged = few.runs()[0].recipe.digest
    (tmp_path / damaged / "result.json").write_text("{")
    assert len(points(tmp_path)) == 1
    assert failures(tmp_path).keys() == {damaged}
    (outcome,) = run_study(few, tmp_path, workers=1)
    assert outcome.run == damaged


def test_what_stands_on_a_failed_dense_twin_says_why_and_is_not_tried(study, tmp_path):
    diverging = replace(study, recipe={**study.recipe, "lr": 1e30}, series=[study.series[2]], grid={"seed": [0]})
    twin, late = diverging.recipes()
    outcomes = {outcome.run: outcome.error for outcome in run_study(diverging, tmp_path, workers=1)}
    assert outcomes.keys() == {twin.digest, late.digest}
    assert "nan" in outcomes[twin.digest]
    assert twin.digest in outcomes[late.digest]
    assert "nan" in outcomes[late.digest]
    assert failures(tmp_path) == outcomes
    assert not (tmp_path / late.digest / "plan.safetensors").exists()


def test_an_interrupted_study_ends_its_workers_in_the_middle_of_their_runs(file, tmp_path):
    text = file.read_text().replace("epochs = 2", "epochs = 100000")
    file.write_text(text)
    command = [sys.executable, "-m", "pollard", "study", str(file), "--out", str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0


def test_a_run_that_fails_is_kept_and_told_and_the_others_go_on(study, tmp_path):
    broken = failing(study)
    outcomes = run_study(broken, tmp_path, workers=2)
    assert len(outcomes) == 4
    assert all("17" in outcome.error for outcome in outcomes)
    assert len(points(tmp_path)) == 10
    assert failures(tmp_path).keys() == {outcome.run for outcome in outcomes}
    assert "Traceback" in json.loads((tmp_path / outcomes[0].run / FAILURE).read_text())["traceback"][0]


def test_what_failed_is_left_alone_unless_it_is_to_be_retried(study, tmp_path, monkeypatch):
    broken = failing(study)
    run_study(broken, tmp_path, workers=1)
    stamps = {run: (tmp_path / run / FAILURE).stat().st_mtime_ns for run in failures(tmp_path)}
    again = run_study(broken, tmp_path, workers=1)
    assert {outcome.run for outcome in again} == stamps.keys()
    assert all("--retry" in outcome.error for outcome in again)
    assert {run: (tmp_path / run / FAILURE).stat().st_mtime_ns for run in stamps} == stamps
    retried = run_study(broken, tmp_path, workers=1, retry=True)
    assert {outcome.run for outcome in retried} == stamps.keys()
    assert all(has_failed(tmp_path, planned.recipe) for planned in broken.runs() if planned.label == "broken")


def test_a_worker_that_is_killed_is_replaced_and_its_run_goes_on(study, tmp_path):
    slow = replace(study, recipe={**study.recipe, "epochs": 60}, grid={"seed": [0]}, series=[Series("SNIP")])
    (planned,) = slow.runs()
    others, victims = set(multiprocessing.active_children()), []  # of tests before, that are not over yet

    def kill_once():
        metrics = tmp_path / planned.recipe.digest / "metrics.jsonl"
        while not metrics.exists():
            time.sleep(0.01)
        (worker,) = set(multiprocessing.active_children()) - others
        worker.kill()
        victims.append(worker)

    killer = threading.Thread(target=kill_once)
    killer.start()
    assert run_study(slow, tmp_path, workers=2) == []
    killer.join()
    assert len(victims) == 1
    expected = run(planned.recipe, tmp_path / "alone", progress=False, threads=1)
    assert points(tmp_path)[0]["test_loss"] == expected.test_loss


class Dying:
    """A pool whose process dies whatever it is given."""

    def submit(self, *_given):
        raise local.BrokenProcessPool

    def shutdown(self, **_how):
        pass


def test_a_run_whose_process_dies_again_is_a_failure(study, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_pool", Dying)
    outcomes = run_study(study, tmp_path, workers=2)
    assert len(outcomes) == 10
    assert all("died 2 times" in outcome.error for outcome in outcomes)
    assert len(failures(tmp_path)) == 10


class Interrupted(Dying):
    def submit(self, *_given):
        raise KeyboardInterrupt


def test_what_stops_a_slot_stops_the_study(study, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_pool", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, workers=2)


def test_ray_gives_the_same_results(study, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is an extra")
    here, there = tmp_path / "local", tmp_path / "ray"
    assert run_study(study, here, workers=2) == []
    told = []
    assert run_study(study, there, engine="ray", workers=2, on_done=told.append) == []
    assert len(told) == len(study.recipes())
    timed = ("seconds_per_step", "peak_rss_bytes")
    for one, other in zip(points(here), points(there), strict=True):
        assert {name: (one[name], other[name]) for name in one if one[name] != other[name] and name not in timed} == {}
    for recipe in study.recipes():
        models = [(out / recipe.digest / "model.safetensors").read_bytes() for out in (here, there)]
        assert models[0] == models[1]


def test_a_failure_on_ray_is_kept_too(study, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra")
    only = replace(failing(study), grid={"seed": [0]}, series=[failing(study).series[-1]])
    (outcome,) = run_study(only, tmp_path, engine="ray", workers=1)
    assert "17" in outcome.error
    assert failures(tmp_path).keys() == {outcome.run}


def test_ray_that_is_not_installed_says_what_to_do(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r"pip install 'pollard\[ray\]'"):
        run_study(study, tmp_path, engine="ray", workers=1)


def test_runs_in_different_precisions_are_not_averaged():
    grid = {"density": [0.1], "seed": [0, 1], "precision": ["float32", "autocast", "bfloat16"]}
    found = Study("precisions", {}, grid, [Series("SNIP")]).runs()
    assert {run.label for run in found} == {f"SNIP, precision {precision}" for precision in grid["precision"]}
    assert len({run.recipe.digest for run in found}) == 6
