"""A recipe on a device without kernels of ours comes to what it comes to on the CPU, and goes on from there to here and back.

Run by `test_devices` in a process of its own.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from pollard.errors import InvalidInput
from pollard.formats.store import load_tensors
from pollard.recipes import Recipe, run
from pollard.recipes.dense import save_snapshot
from pollard.recipes.device import device_called
from pollard.recipes.folder import MODEL, RESULT
from pollard.recipes.result import RunResult
from pollard.report.machine import device_name
from pollard.training import Examples, Observer, Outputs, TrainingDiverged, TrainingOptions, train
from pollard.training.placing import TOGETHER, Losses
from tried import DEVICE, only_cuda, untuned

pytestmark = untuned
NAME = str(DEVICE)
RECIPE = Recipe(model="mlp-64-32-10", epochs=2, density=0.3, lr=0.02, batch_size=50)
IMAGES = replace(
    RECIPE, model="resnet-20-x0.25", epochs=1, batch_size=300, augment="crop,flip", storage="masked", score_batch=20
)
MANY = [
    RECIPE,
    replace(RECIPE, method="dense"),
    replace(RECIPE, method="random", allocation="uniform"),
    replace(RECIPE, method="random", allocation="global", storage="masked"),
    replace(RECIPE, method="grasp", precision="bfloat16"),
    replace(RECIPE, method="synflow", score_rounds=3, repair="isometry"),
    replace(RECIPE, method="magnitude", allocation="global", score_at=2.0, schedule_at=1.0),
    replace(RECIPE, method="snip", score_at=1.0, weights_at=0.0, cycles=2),
    replace(RECIPE, method="snip", ablation="reinitialise", repair="refit"),
    replace(RECIPE, method="snip", ablation="shuffle", repair="orthogonal"),
    replace(RECIPE, method="sparsegpt"),
    pytest.param(replace(RECIPE, precision="autocast"), marks=only_cuda),
    replace(RECIPE, method="rigl", update_every=10, optimizer="adam"),
    replace(RECIPE, never_dense=True, method="synflow", score_rounds=2),
]


@pytest.mark.parametrize("recipe", MANY, ids=str)
def test_a_recipe_comes_to_what_it_comes_to_on_the_cpu(recipe, tmp_path):
    found = []
    for device in ("cpu", NAME):
        out = tmp_path / device
        if recipe.score_at:
            run(recipe.twin(), out, device=device, progress=False)
            save_snapshot(recipe.twin(), out, 1.0, device=device, progress=False)
        result = run(recipe, out, device=device, progress=False, aims=not recipe.never_dense)
        again = RunResult.read(result.folder)
        assert (again.device, again.recipe) == (device_name(torch.device(device)), recipe)
        found.append(result)
        assert next(result.model().parameters()).device.type == "cpu"
    here, there = found
    assert here.folder.name == there.folder.name
    assert here.nnz == there.nnz
    near = {"rel": 0.1} if recipe.precision != "float32" else {"rel": 1e-3, "abs": 1e-4}
    assert there.train_loss == pytest.approx(here.train_loss, **near)
    assert there.test_loss == pytest.approx(here.test_loss, **near)
    if here.aims is not None:
        assert there.aims.loss == pytest.approx(here.aims.loss, rel=1e-3)


@pytest.mark.parametrize("method", ["snip", "dense"])
def test_images_are_changed_as_on_the_cpu(method, tmp_path):
    recipe = replace(IMAGES, method=method)
    here, there = (run(recipe, tmp_path / each, device=each, progress=False) for each in ("cpu", NAME))
    assert there.train_loss == pytest.approx(here.train_loss, rel=1e-3)


def test_a_run_goes_on_elsewhere(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    class Watching:
        def __init__(self, *_):
            pass

        def after_epoch(self, record):
            if record["epoch"] == 1 and stops:
                raise Stop

        def begin(self, *_):
            pass

        after_step = end = begin

    monkeypatch.setattr(importlib.import_module("pollard.recipes.run"), "ProgressBar", Watching)
    stops = False
    expected = run(RECIPE, tmp_path / "whole")
    for before, after in ((NAME, "cpu"), ("cpu", NAME)):
        stops = True
        with pytest.raises(Stop):
            run(RECIPE, tmp_path / before, device=before)
        stops = False
        found = run(RECIPE, tmp_path / before, device=after)
        assert found.device == device_name(torch.device(after))
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        weights, others = (load_tensors(each.folder / MODEL)[0] for each in (expected, found))
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=1e-2, atol=1e-4)


def problem(count):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=draw)
    return Examples(x.to(DEVICE), (x[:, 0] > 0).long().to(DEVICE))


class Heard(Observer):
    def __init__(self):
        self.losses = []

    def begin(self, *_):
        pass

    def after_step(self, step, loss):
        self.losses.append((step, loss))

    after_epoch = end = begin


def test_losses_are_read_some_at_a_time_and_all_before_anything_is_written(tmp_path, monkeypatch):
    read = []
    reading = Losses.read
    monkeypatch.setattr(Losses, "read", lambda self: read.append(reading(self)) or read[-1])
    heard = Heard()
    model = torch.nn.Linear(6, 2).to(DEVICE)
    outputs = Outputs(folder=tmp_path, observers=[heard], checkpoint_steps=70)
    options = TrainingOptions(epochs=1, batch_size=1, lr=1e-3)
    trained = train(model, problem(120), {}, options, outputs=outputs)
    assert [len(losses) for losses in read if losses] == [TOGETHER, 20, TOGETHER]
    assert [step for step, _ in heard.losses] == list(range(1, 121))
    assert trained.record["train_loss"] == pytest.approx(sum(loss for _, loss in heard.losses) / 120)
    assert trained.record["seconds"] > 0


def test_a_loss_that_is_not_finite_is_found_before_it_is_written(tmp_path):
    examples = problem(20)
    examples.x[3] = torch.nan
    model = torch.nn.Linear(6, 2).to(DEVICE)
    with pytest.raises(TrainingDiverged, match="loss nan at step"):
        train(model, examples, {}, TrainingOptions(epochs=1, batch_size=1), outputs=Outputs(folder=tmp_path))
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_examples_elsewhere_are_refused():
    here = Examples(*(each.cpu() for each in problem(4)))
    with pytest.raises(InvalidInput, match=f"test examples on cpu for a model on {DEVICE}"):
        train(torch.nn.Linear(6, 2).to(DEVICE), problem(4), {"test": here}, TrainingOptions(epochs=1))


def test_a_device_that_is_not_there_is_told_of(tmp_path):
    assert device_called(NAME) == DEVICE
    with pytest.raises(InvalidInput, match="'meta'"):
        device_called("meta")
    with pytest.raises(InvalidInput, match=r"device 'nowhere'.*cpu.*nvidia-smi"):
        run(RECIPE, tmp_path, device="nowhere", progress=False)
    assert not (tmp_path / RECIPE.digest / RESULT).exists()
