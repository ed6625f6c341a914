"""Precision: what is held in which numbers, a loss in float32 always, and resumption to the bit in each."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pollard.formats.store import load_tensors
from pollard.formats.topology import Topology
from pollard.nn.surgery import sparsify_
from pollard.training import Examples, Outputs, TrainingOptions, evaluate, generator, train
from pollard.training.methods.rigl import rigl
from pollard.training.options import PRECISIONS

HELD = {"float32": torch.float32, "autocast": torch.float32, "bfloat16": torch.bfloat16}


def points():
    draw = generator(0, "problem")
    x = torch.randn(100, 16, generator=draw)
    return Examples(x, (x @ torch.randn(16, 3, generator=draw)).argmax(1))


def network(storage="compressed"):
    draw = generator(0, "network")
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=draw)
    return sparsify_(model, {"0": Topology.random((24, 16), 0.5, generator=draw)}, storage=storage)


class Spy:
    """A loss that keeps what it was given and gave."""

    def __init__(self):
        self.seen = set()

    def __call__(self, output, target):
        loss = cross_entropy(output, target)
        self.seen.add((output.dtype, loss.dtype))
        return loss


class StopAfter:
    """An observer that ends the process's part in a run, as a kill would."""

    def __init__(self, step):
        self.step = step

    def begin(self, step, steps):
        pass

    def after_step(self, step, loss):
        if step == self.step:
            raise KeyboardInterrupt

    def after_epoch(self, record):
        pass

    def end(self):
        pass


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_gradients_and_state_are_held_in_it_and_the_loss_is_float32(precision, storage):
    model, spy, hidden = network(storage), Spy(), set()
    model[0].register_forward_hook(lambda layer, inputs, output: hidden.add(output.dtype))
    data, options = points(), TrainingOptions(epochs=12, batch_size=10, lr=0.1, precision=precision)
    trained = train(model, data, {"test": data}, options, loss_fn=spy)
    assert spy.seen == {(torch.float32, torch.float32)}
    assert hidden == {torch.float32 if precision == "float32" else torch.bfloat16}
    parameters = list(model.parameters())
    state = [each["momentum_buffer"] for each in trained.optimizer.state.values()]
    assert {tensor.dtype for tensor in (*parameters, *(p.grad for p in parameters), *state)} == {HELD[precision]}
    assert trained.record["test_accuracy"] > 0.85
    found = evaluate(model, data, batch_size=10, precision=precision)
    assert (found.loss, found.accuracy) == (trained.record["test_loss"], trained.record["test_accuracy"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("moves", [False, True], ids=["stays", "moves"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, precision, moves, optimizer):
    data, options = (
        points(),
        TrainingOptions(epochs=3, batch_size=10, lr=0.05, precision=precision, optimizer=optimizer),
    )

    def ended(folder, *observers):
        model, method = network(), rigl(0.5, steps=30, every=4, until=1.0) if moves else None
        outputs = Outputs(folder=folder, checkpoint_steps=3, observers=observers)
        train(model, data, {"test": data}, options, method=method, outputs=outputs)
        return model.state_dict()

    expected = ended(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        ended(tmp_path / "killed", StopAfter(17))
    found = ended(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_autocast_that_a_caller_has_set_up_is_left_alone():
    model, data, spy = network(), points(), Spy()
    with torch.autocast("cpu", torch.bfloat16):
        evaluate(model, data, loss_fn=spy)
    assert spy.seen == {(torch.bfloat16, torch.float32)}


def test_whole_numbers_stay_whole():
    words = Examples(torch.randint(0, 7, (30,), generator=generator(0, "words")), torch.arange(30) % 3)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
    trained = train(model, words, {}, TrainingOptions(epochs=1, precision="bfloat16"))
    assert trained.model[0].weight.dtype == torch.bfloat16


def test_checkpoints_from_before_there_was_a_choice_are_gone_on_from(tmp_path):
    train(network(), points(), {}, TrainingOptions(epochs=1), outputs=Outputs(folder=tmp_path))
    assert load_tensors(tmp_path / "checkpoint.safetensors")[1]["identity"] == "d711c7ba1439"
