"""Running a study: every run happens once, what fails is kept, and stopping loses nothing."""

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

import pytest

from pollard.errors import InvalidInput, StoreError
from pollard.recipes import Recipe, RunResult, run
from pollard.recipes.engines import local, run_study
from pollard.recipes.engines.execution import execute, fail, has_failed, is_finished
from pollard.recipes.folder import FAILURE
from pollard.recipes.points import failures, points
from pollard.recipes.study import Series, Study, read_ledger


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


def test_what_failed_is_left_alone_unless_it_is_to_be_retried(study, tmp_path):
    broken = failing(replace(study, series=study.series[1:2], grid={"density": [0.5], "seed": [0, 1]}))
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


def test_ray_gives_the_same_results_and_the_same_failures(study, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra")
    broken, here, there, told = failing(study), tmp_path / "local", tmp_path / "ray", []
    assert len(run_study(broken, here, workers=2)) == 4
    outcomes = run_study(broken, there, engine="ray", workers=2, on_done=told.append)
    assert len(told) == len(broken.recipes())
    assert failures(there) == failures(here) == {outcome.run: outcome.error for outcome in outcomes}
    timed = ("seconds_per_step", "peak_rss_bytes")
    for one, other in zip(points(here), points(there), strict=True):
        assert {name: (one[name], other[name]) for name in one if one[name] != other[name] and name not in timed} == {}
    for recipe in study.recipes():
        models = [(out / recipe.digest / "model.safetensors").read_bytes() for out in (here, there)]
        assert models[0] == models[1]


def test_ray_that_is_not_installed_says_what_to_do(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r"pip install 'pollard\[ray\]'"):
        run_study(study, tmp_path, engine="ray", workers=1)
