"""Other processes: forked, spawned, sharing memory, and training together."""

from __future__ import annotations

import atexit
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch
from torch import multiprocessing as torch_multiprocessing
from torch.utils.data import DataLoader

from compatibility import beside
from compatibility.piece import Refused, piece
from compatibility.trial import Training, X, dense, model_of, require_ordinary, weights
from ranks import two_ranks

FAMILY = "Processes"
x = X[:16]
_closing = ExitStack()
atexit.register(_closing.close)


@cache
def group():
    """Two processes, started once."""
    return _closing.enter_context(two_ranks(Path(_closing.enter_context(tempfile.TemporaryDirectory()))))


@cache
def pool(start):
    return _closing.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context(start)))


def on_ranks(function, method):
    for answer in group().ask(function, method):
        if isinstance(answer, Exception):
            raise answer


RESIZES = {"gmp": Refused("DistributedDataParallel", "its buckets keep their sizes: `average_gradients` instead")}


@piece(FAMILY, "`DistributedDataParallel`", refused=RESIZES)
def _(method):
    on_ranks(beside.wrapped, method)


@piece(FAMILY, "`DistributedDataParallel` with `no_sync` and GradScaler", refused=RESIZES)
def _(method):
    on_ranks(beside.accumulated, method)


@piece(FAMILY, "two processes and `pollard.training.processes.average_gradients`")
def _(method):
    on_ranks(beside.averaged, method)


@piece(
    FAMILY,
    "FSDP2: `fully_shard` of a sparse model, the optimizer made then",
    refused=dict.fromkeys(
        ("rigl", "set", "gmp"),
        Refused(
            "shard of layer '0'.*DistributedDataParallel",
            "an update needs whole layers: DistributedDataParallel instead",
        ),
    ),
)
def _(method):
    on_ranks(beside.sharded, method)


@piece(
    FAMILY,
    "FSDP2: `fully_shard` of a dense model, made sparse then",
    refused=Refused("sparse before it is sharded", "the other way round"),
)
def _(method):
    on_ranks(beside.sharded_first, method)


def there_and_here(model, compute):
    """`compute` in another process gives what the dense network gives here, and so does the model here afterwards."""
    twin = dense(model)
    model(x)  # so that kernels know where everything lies
    outputs, found = compute(model)
    torch.testing.assert_close(torch.tensor(outputs), twin(x))
    here, gradients = beside.gradients(model, x)
    assert here == outputs
    assert gradients == found


@piece(FAMILY, "a model given to a spawned process, and used on both sides")
def _(method):
    there_and_here(model_of(method), lambda model: pool("spawn").submit(beside.gradients, model, x).result(60))


def forked(model):
    context = torch_multiprocessing.get_context("fork")
    into, outof = context.Pipe()
    process = context.Process(target=lambda: into.send(beside.gradients(model, x)))
    process.start()
    assert outof.poll(60)
    found = outof.recv()
    process.join(60)
    assert process.exitcode == 0
    return found


@piece(FAMILY, "a model used by a forked process")
def _(method):
    there_and_here(model_of(method), forked)


@piece(FAMILY, "`share_memory`, a `state_dict` or a model on a queue")
def _(method):
    model = model_of(method)
    twin = dense(model)
    model(x)
    model.share_memory()
    torch.testing.assert_close(model(x), twin(x))
    queue = torch_multiprocessing.get_context("fork").SimpleQueue()
    other = Training(method).model
    for sent in (model.state_dict(), model):
        queue.put(sent)
        got = queue.get()
        if isinstance(got, dict):
            other.load_state_dict(got)
            got = other
        torch.testing.assert_close(got(x), twin(x))
        torch.testing.assert_close(model(x), twin(x))


@piece(FAMILY, "training goes on after `share_memory`")
def _(method):
    training = Training(method).go(range(2))
    training.model.share_memory()
    training.go(range(2, 12))
    require_ordinary(training)


@piece(FAMILY, "`DataLoader` workers whose dataset holds a model")
def _(method):
    model = model_of(method)
    expected = dense(model)(X).detach()
    rows = DataLoader(beside.Labelled(model), 16, num_workers=2)
    torch.testing.assert_close(torch.cat(list(rows)), expected)


@piece(
    FAMILY,
    "Hogwild: two processes train one shared model",
    refused=dict.fromkeys(
        ("rigl", "set", "gmp"), Refused("topolog", "another process moved the topology of shared values")
    ),
)
def _(method):
    training = Training(method, lambda parameters: torch.optim.SGD(parameters, 0.1), steps=60)
    before = weights(training.model)
    training.model.share_memory()
    context = torch_multiprocessing.get_context("fork")
    processes = [context.Process(target=beside.race, args=(training, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    after = weights(training.model)
    kept = before["0.weight"] != 0
    assert ((after["0.weight"] != before["0.weight"]) == kept).float().mean() > 0.95
    torch.testing.assert_close(training.model(x), dense(training.model)(x))
