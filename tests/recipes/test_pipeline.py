"""When a network is scored, which weights it keeps, where its schedule starts: against the same done by hand."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pollard import data
from pollard.formats import store
from pollard.nn.surgery import densify_, sparsify_
from pollard.pruning.decision import prune
from pollard.pruning.plan import Plan
from pollard.pruning.rounds import RoundsFile
from pollard.recipes import Recipe, folder, required, run
from pollard.recipes.dense import dense_weights, save_snapshot
from pollard.recipes.models import dense_network
from pollard.training import Examples, evaluate, generator, read_metrics, train

SIZES = (16, 32, 2)
EPOCHS = 4


@pytest.fixture(scope="module")
def recipe(tiny_data):
    return Recipe(
        data=str(tiny_data),
        model="mlp-16-32-2",
        method="magnitude",
        allocation="uniform",
        density=0.25,
        epochs=EPOCHS,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def trained_once(recipe, tmp_path_factory):
    """The dense run with the snapshots that these tests want."""
    out = tmp_path_factory.mktemp("dense")
    run(recipe.twin(), out, progress=False)
    for epoch in (0.5, 1.0):
        save_snapshot(recipe.twin(), out, epoch, progress=False)
    return out


@pytest.fixture
def out(trained_once, tmp_path):
    """A folder of its own that holds the dense run."""
    return Path(shutil.copytree(trained_once, tmp_path / "out"))


def examples(recipe):
    loaded = data.load(recipe.data)
    return Examples(loaded.train_x, loaded.train_y)


def dense(recipe, epoch, purpose="weights"):
    """The dense network after `epoch` epochs, trained here."""
    model = dense_network(SIZES, "lecun", generator(recipe.seed, purpose))
    if epoch:
        train(model, examples(recipe), {}, recipe.options(), stop=epoch)
    return model


def by_hand(recipe, scored_at, weights_at, schedule_at, cycles=1):
    """The state that a pipeline ends with, from its definition: no folders, no stages, nothing skipped."""
    scored, plan = dense(recipe, scored_at), None
    for cycle in range(1, cycles + 1):
        density = recipe.density ** (cycle / cycles)
        plan = prune(scored, recipe.method, density, allocation=recipe.allocation, within=plan)
        weights = scored if weights_at == scored_at else dense(recipe, weights_at)
        model = sparsify_(weights, plan)
        stop = EPOCHS if cycle == cycles else scored_at
        train(model, examples(recipe), {}, recipe.options(), start=schedule_at, stop=stop)
        if cycle < cycles:
            scored = densify_(model)
    return plan, model.state_dict()


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


PIPELINES = {
    "prune at initialisation": (0, -1, 0),
    "prune early in training": (1, -1, 1),
    "prune within an epoch": (0.5, -1, 0.5),
    "train, prune, fine-tune": (EPOCHS, -1, EPOCHS - 1),
    "learning-rate rewinding": (EPOCHS, -1, 0),
    "lottery ticket": (EPOCHS, 0, 0),
    "late reset": (EPOCHS, 1, 1),
    "early ticket": (1, 0.5, 0),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_three_settings_give_the_published_pipelines(out, recipe, name):
    score_at, weights_at, schedule_at = PIPELINES[name]
    chosen = replace(recipe, score_at=score_at, weights_at=weights_at, schedule_at=schedule_at)
    result = run(chosen, out, progress=False)
    plan, state = by_hand(recipe, score_at, score_at if weights_at == -1 else weights_at, schedule_at)
    found = Plan.load(result.folder / "plan.safetensors")
    assert all(found[layer].same_as(plan[layer]) for layer in plan)
    assert same_state(result.model().state_dict(), state)
    assert result.steps == 8 * (EPOCHS - schedule_at)


@pytest.mark.parametrize("name", ["train, prune, fine-tune", "learning-rate rewinding", "lottery ticket", "late reset"])
def test_cycles_train_score_and_prune_again(out, recipe, name):
    score_at, weights_at, schedule_at = PIPELINES[name]
    chosen = replace(recipe, score_at=score_at, weights_at=weights_at, schedule_at=schedule_at, cycles=3)
    result = run(chosen, out, progress=False)
    plan, state = by_hand(recipe, score_at, score_at if weights_at == -1 else weights_at, schedule_at, cycles=3)
    assert same_state(result.model().state_dict(), state)
    plans = [Plan.load(result.folder / name / "plan.safetensors") for name in ("cycle-1", "cycle-2", "")]
    assert [each.nnz for each in plans] == [round(0.25 ** (k / 3) * plan.weights) for k in (1, 2, 3)]
    for before, after in itertools.pairwise(plans):
        assert all(not (after.mask(layer) & ~before.mask(layer)).any() for layer in plan)


def test_rewinding_is_not_the_same_as_going_on(out, recipe):
    found = {
        name: run(replace(recipe, score_at=s, weights_at=w, schedule_at=a), out, progress=False).model().state_dict()
        for name, (s, w, a) in PIPELINES.items()
    }
    values = [state["fc1.values"].sum().item() for state in found.values()]
    assert len(set(values)) == len(values)


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.mark.parametrize("after", [False, True])
def test_a_process_that_dies_at_every_file_ends_where_one_that_lives_does(out, tmp_path, recipe, monkeypatch, after):
    chosen = replace(recipe, score_at=EPOCHS, weights_at=1, schedule_at=2, cycles=3)
    whole = run(chosen, shutil.copytree(out, tmp_path / "whole"), progress=False).folder
    written, real = 0, store.write_atomic

    def write_one_and_die(path, content):
        nonlocal written
        if written and not after:
            raise Killed
        real(path, content)
        written += 1
        if after:
            raise Killed

    monkeypatch.setattr(store, "write_atomic", write_one_and_die)
    monkeypatch.setattr(folder, "write_atomic", write_one_and_die)
    lives = 0
    while not (out / chosen.digest / "result.json").exists():
        lives, written = lives + 1, 0
        with contextlib.suppress(Killed):
            run(chosen, out, progress=False)
    # Three plans, two epochs a training with a checkpoint each, three models, a recipe and a result.
    assert lives >= 14
    for name in ("model.safetensors", "cycle-1/model.safetensors", "cycle-2/model.safetensors"):
        assert (out / chosen.digest / name).read_bytes() == (whole / name).read_bytes()
    assert without_clocks(out / chosen.digest) == without_clocks(whole)


def without_clocks(run_folder):
    measured = ("seconds", "held_bytes", "peak_rss_bytes", "baseline_rss_bytes")
    lines = read_metrics(run_folder / "metrics.jsonl") + read_metrics(run_folder / "cycle-2" / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def test_finished_stages_are_not_touched_again(out, recipe):
    chosen = replace(recipe, score_at=EPOCHS, cycles=2)
    first = run(chosen, out, progress=False)
    stages = [*(first.folder / "cycle-1").iterdir(), *(out / recipe.twin().digest).rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in stages if path.is_file()}
    model = (first.folder / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "result.json", "checkpoint.safetensors", "plan.safetensors"):
        (first.folder / name).unlink()
    again = run(chosen, out, progress=False)
    assert (again.folder / "model.safetensors").read_bytes() == model
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_rounds_over_weights_without_memory_go_on_where_they_were_stopped(tmp_path, recipe, monkeypatch):
    chosen = replace(recipe, method="synflow", allocation="global", score_rounds=5, never_dense=True, epochs=1)
    expected = run(chosen, tmp_path / "undisturbed", progress=False)
    write, made = RoundsFile.write, []

    def stop(self, finished, generator):
        write(self, finished, generator)
        made.append(finished.rounds)
        if made == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(RoundsFile, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, tmp_path, progress=False)
    found = run(chosen, tmp_path, progress=False)
    assert made == [1, 2, 3, 4]
    assert not list(found.folder.glob("rounds*"))
    plans = [Plan.load(each.folder / "plan.safetensors") for each in (found, expected)]
    assert all(plans[0][name].same_as(each) for name, each in plans[1].items())


def test_dense_weights_are_those_of_the_dense_run_at_that_epoch(out, recipe):
    twin = recipe.twin()
    for epoch in (0.5, 1, EPOCHS):
        assert same_state(dense_weights(twin, out, epoch), dense(recipe, epoch).state_dict())


def test_a_finished_dense_run_is_trained_again_up_to_an_epoch_that_it_left_nothing_of(out, recipe):
    twin = recipe.twin()
    files = {path: path.read_bytes() for path in (out / twin.digest).iterdir() if path.is_file()}
    save_snapshot(twin, out, 3, progress=False)
    assert same_state(dense_weights(twin, out, 3), dense(recipe, 3).state_dict())
    assert {path: path.read_bytes() for path in files} == files
    assert sorted(path.name for path in (out / twin.digest / "snapshots").iterdir()) == [
        f"epoch-{epoch}.safetensors" for epoch in ("0.5", "1", "3")
    ]


def test_a_snapshot_goes_on_after_a_kill(out, recipe, monkeypatch):
    twin = recipe.twin()
    real, steps = torch.optim.SGD.step, []

    def step(self, *given):
        steps.append(len(steps))
        if len(steps) == 20:
            raise Killed
        return real(self, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(Killed):
        save_snapshot(twin, out, 3, progress=False)
    save_snapshot(twin, out, 3, progress=False)
    assert len(steps) == 20 + 8  # two epochs were kept
    assert same_state(dense_weights(twin, out, 3), dense(recipe, 3).state_dict())


def test_dense_weights_that_are_missing_are_made_in_a_process_of_their_own(tmp_path, recipe):
    chosen = replace(recipe, score_at=1, weights_at=0, schedule_at=3)
    result = run(chosen, tmp_path, progress=False)
    assert same_state(result.model().state_dict(), by_hand(recipe, 1, 0, 3)[1])
    left = {path.name for path in (tmp_path / recipe.twin().digest).iterdir()}
    assert left == {".lock", "recipe.json", "snapshots"}


def test_who_waits_for_a_folder_gets_it_next(tmp_path, recipe):
    entered = threading.Event()

    def wait():
        with folder.locked_folder(recipe, tmp_path, wait=True):
            entered.set()

    with folder.locked_folder(recipe, tmp_path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    waiting.join()


def test_what_has_to_run_first_is_the_dense_twin_of_what_looks_at_a_trained_network(recipe):
    assert required(recipe) == required(recipe.twin()) == required(replace(recipe, method="random")) == []
    assert required(replace(recipe, score_at=1)) == required(replace(recipe, weights_at=2)) == [recipe.twin()]


def densities(plan):
    return {name: topology.density for name, topology in plan.items()}


def plan_of(result):
    return Plan.load(result.folder / "plan.safetensors")


@pytest.mark.parametrize("late", [{}, {"score_at": EPOCHS}, {"score_at": EPOCHS, "weights_at": 0, "cycles": 2}])
def test_ablations_take_away_one_thing_each(out, recipe, late):
    chosen = replace(recipe, method="snip", allocation="global", **late)
    plain, shuffled, anew, inverted = (
        run(replace(chosen, ablation=ablation), out, progress=False)
        for ablation in ("", "shuffle", "reinitialise", "invert")
    )
    assert densities(plan_of(shuffled)) == densities(plan_of(plain))
    assert not plan_of(shuffled)["fc1"].same_as(plan_of(plain)["fc1"])
    assert all(plan_of(anew)[name].same_as(plan_of(plain)[name]) for name in plan_of(plain))
    plan = plan_of(anew)
    model = sparsify_(dense(recipe, 0, "weights anew"), plan)
    train(model, examples(recipe), {}, recipe.options())
    assert same_state(anew.model().state_dict(), model.state_dict())
    assert not any((plan_of(inverted).mask(name) & plan_of(plain).mask(name)).any() for name in plan) or late.get(
        "cycles"
    )
    assert plan_of(inverted).nnz == plan_of(plain).nnz


def test_one_mask_is_crossed_with_every_kind_of_values(out, recipe):
    late = replace(recipe, method="sparsegpt", score_at=EPOCHS, epochs=EPOCHS)
    own, trained, refitted, initial, anew = (
        run(replace(late, **fields), out, progress=False)
        for fields in (
            {},
            {"ablation": "restore"},
            {"repair": "refit"},
            {"weights_at": 0},
            {"ablation": "reinitialise"},
        )
    )
    mask = plan_of(own)
    assert all(plan_of(each)[name].same_as(mask[name]) for each in (trained, refitted, initial, anew) for name in mask)
    assert plan_of(own).updated.keys() == plan_of(refitted).updated.keys() == set(mask)
    assert plan_of(trained).updated == plan_of(initial).updated == plan_of(anew).updated == {}
    assert not torch.equal(plan_of(own).updated["fc1"], plan_of(refitted).updated["fc1"])


def test_a_trained_network_loses_less_when_what_is_kept_is_refitted(out, recipe):
    chosen = replace(recipe, method="magnitude", repair="refit", score_at=EPOCHS)
    plain, refitted = (run(each, out, progress=False, aims=True) for each in (replace(chosen, repair=""), chosen))
    assert same_plan(plan_of(plain), plan_of(refitted))
    assert abs(refitted.aims.loss - refitted.aims.loss_before) < abs(plain.aims.loss - plain.aims.loss_before)


def same_plan(one, other):
    return all(one[name].same_as(other[name]) for name in one)


@pytest.mark.parametrize("changed", [{"method": "dense"}, {"storage": "masked"}, {}, {"method": "random"}])
def test_a_result_gives_back_its_trained_network(out, recipe, changed):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    result = run(replace(recipe, **changed), out, progress=False)
    model = result.model()
    assert torch.equal(torch.get_rng_state(), before)
    test = data.load(recipe.data)
    found = evaluate(model, Examples(test.test_x, test.test_y), batch_size=8)
    assert (found.loss, found.accuracy) == (result.test_loss, result.test_accuracy)
