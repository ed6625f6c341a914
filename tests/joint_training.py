"""What the processes of tests/training/test_processes.py do: small trainings, the same on one process and on two."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pollard.nn import sparsify_
from pollard.pruning import prune
from pollard.recipes import Recipe, run
from pollard.training import Examples, Outputs, TrainingOptions, processes, train
from pollard.training.methods import METHODS
from pollard.training.shorthands import rigl, set_
from pollard.training.sparsifier import Sparsifier

STEPS = 50
EVERY = {"static": {}, "dsd": {}}


def network(density: float = 0.2, seed: int = 0, storage: str = "compressed") -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    plan = prune(model, "random", density, allocation="erk", generator=torch.Generator().manual_seed(3))
    return sparsify_(model, plan, storage=storage)


def examples(count: int = 256) -> Examples:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 20, generator=draw, dtype=torch.float64)
    return Examples(x, (x @ torch.randn(20, 5, generator=draw, dtype=torch.float64)).argmax(1))


def method_of(name: str, **options: object):
    return METHODS[name](0.2, STEPS, **{**EVERY.get(name, {"every": 10}), **options})


def first_density(method) -> float:
    return 0.2 if method.density is None else method.density(0)


class Training:
    """A loop of one's own: part of each batch, DistributedDataParallel or averaged gradients, `step()`.

    how: `wrapper` and `inner` train within DistributedDataParallel, and give the Sparsifier one or the other; `average`
    does without.
    """

    def __init__(self, method, how: str, storage: str = "compressed") -> None:
        self.model = network(first_density(method), storage=storage)
        alone = how == "average" or processes.count() == 1
        self.called = self.model if alone else DistributedDataParallel(self.model, broadcast_buffers=False)
        self.how, self.data = how, examples()
        optimizer = torch.optim.SGD(self.called.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
        self.sparsifier = Sparsifier(self.called if how == "wrapper" else self.model, optimizer, method, seed=5)

    def step(self) -> float:
        start = 32 * self.sparsifier.steps
        own, share = processes.part_of(torch.arange(start, start + 32) % len(self.data.x))
        self.sparsifier.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.called(self.data.x[own]), self.data.y[own]) * share
        loss.backward()
        if self.how == "average":
            processes.average_gradients(self.model)
        self.sparsifier.step()
        return float(processes.mean(loss.detach().clone()))

    def topologies(self) -> dict[str, str]:
        return {name: weight.topology.fingerprint for name, weight in self.sparsifier.weights.items()}


def trajectory(name: str, options: dict[str, object], how: str, storage: str = "compressed"):
    """Losses, the topologies after each tenth step, and the parameters at the end."""
    training = Training(method_of(name, **options), how, storage)
    losses, topologies = [], []
    for step in range(STEPS):
        losses.append(training.step())
        if step % 10 == 9:
            topologies.append(training.topologies())
    return losses, topologies, [parameter.tolist() for parameter in training.model.parameters()]


def places() -> tuple[bool, bool]:
    """Whether parameters are the same objects in the same memory after training within DistributedDataParallel."""
    training = Training(method_of("rigl"), "wrapper")
    before = [(id(each), each.data_ptr()) for each in training.model.parameters()]
    first = training.topologies()
    for _ in range(20):
        training.step()
    return before == [
        (id(each), each.data_ptr()) for each in training.model.parameters()
    ], first != training.topologies()


def tampered() -> None:
    """Weights of one layer on one rank that are not those of the other."""
    training = Training(method_of("rigl"), "average")
    for _ in range(9):
        training.step()
    if processes.rank() == 1:
        with torch.no_grad():
            training.sparsifier.weights["2"].parameter.mul_(torch.rand(len(training.sparsifier.weights["2"].values())))
    training.step()


def other_beginnings() -> None:
    model = network(0.2 if processes.rank() == 0 else 0.3)
    Sparsifier(model, torch.optim.SGD(model.parameters()), method_of("rigl"))


def seeded_apart() -> tuple[dict[str, str], dict[str, str]]:
    """Topologies of a network that is made sparse, before and after an update, where ranks have seeded torch each by itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)).double()
    torch.manual_seed(100 + processes.rank())
    optimizer, data = torch.optim.SGD(model.parameters(), 0.05), examples()
    sparsifier = set_(model, optimizer, density=0.2, steps=20, every=5)
    found = []
    for _ in range(2):
        found.append({name: weight.topology.fingerprint for name, weight in sparsifier.weights.items()})
        for _ in range(5):
            sparsifier.zero_grad()
            nn.functional.cross_entropy(model(data.x), data.y).backward()
            processes.average_gradients(model)
            sparsifier.step()
    return found[0], found[1]


def not_finite(rank: int) -> None:
    training = Training(method_of("rigl"), "average")
    for _ in range(9):
        training.step()
    if processes.rank() == rank:
        training.data.x[0] = math.nan
        training.data = Examples(training.data.x[:1].expand(256, -1), training.data.y)
    training.step()


def no_pass(rank: int) -> None:
    training = Training(method_of("rigl"), "average")
    for _ in range(9):
        training.step()
    if processes.rank() != rank:
        training.called(training.data.x).sum().backward()
    processes.average_gradients(training.model)
    training.sparsifier.step()


def resizing(name: str, how: str) -> None:
    Training(method_of(name), how)


def wrapped_later() -> tuple[str, bool]:
    """What is said where the wrapper came after the Sparsifier, and whether nothing has moved."""
    training = Training(method_of("gmp"), "average")
    training.how, training.called = "wrapper", DistributedDataParallel(training.model)
    for _ in range(training.sparsifier.method.start - 1):
        training.step()
    before = (training.topologies(), training.sparsifier.steps, [each.tolist() for each in training.model.parameters()])
    try:
        training.step()
    except ValueError as error:
        after = (training.topologies(), training.sparsifier.steps, [e.tolist() for e in training.model.parameters()])
        return str(error), before == after
    return "", False


def wrapped_too_early(how: str) -> tuple[str, bool]:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters())
    try:
        rigl(ddp if how == "wrapper" else model, optimizer, density=0.5, steps=100)
    except ValueError as error:
        return str(error), type(model[0]) is nn.Linear
    return "", False


def right_order() -> tuple[float, list[str]]:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters())
    sparsifier = rigl(model, optimizer, density=0.5, steps=100, every=5)
    ddp = DistributedDataParallel(model)
    for _ in range(10):
        optimizer.zero_grad()
        ddp(torch.randn(3, 6)).square().sum().backward()
        sparsifier.step()
    return sparsifier.metrics()["density"], list(sparsifier.weights)


def travelling(density: float, how: str) -> tuple[int, int, int]:
    """Numbers that travel for gradients in a step, numbers trained, and parameters."""
    model = network(density)
    sent: list[int] = []
    called: nn.Module = model
    if how == "wrapper":
        called = DistributedDataParallel(model, broadcast_buffers=False)
        called.register_comm_hook(None, lambda _, bucket: _counting(sent, bucket))
    data = examples(8)
    nn.functional.cross_entropy(called(data.x), data.y).backward()
    if how == "average":
        whole = distributed.all_reduce

        def all_reduce(tensor: Tensor) -> None:
            sent.append(tensor.numel())
            whole(tensor)

        distributed.all_reduce = all_reduce
        processes.average_gradients(model)
        distributed.all_reduce = whole
    trained = [parameter.numel() for parameter in model.parameters()]
    return sum(sent), sum(trained), len(trained)


def _counting(sent: list[int], bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    sent.append(bucket.buffer().numel())
    return distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def some_gradients() -> list[object]:
    """Gradients after averaging those that all ranks, one rank, and no rank have."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(3)])
    model[0].grad = torch.full((2,), float(processes.rank()))
    if processes.rank() == 1:
        model[1].grad = torch.ones(2)
    held = model[0].grad
    processes.average_gradients(model)
    assert model[0].grad is held
    return [None if each.grad is None else each.grad.tolist() for each in model]


def options(**changed: object) -> TrainingOptions:
    return TrainingOptions(**{"epochs": 3, "batch_size": 16, "lr": 0.05, "seed": 4, **changed})


def trained(folder: Path | None, name: str, options_of: dict[str, object], stop: float, layers: str = "") -> object:
    """The record and the state after `train` to epoch `stop`.

    Of 97 examples a last batch has but one, of which one rank gets nothing; a batch norm wants two on each.
    """
    model = network(first_density(method_of(name)), seed=processes.rank())
    if layers:
        model = nn.Sequential(*model[:2], _LAYERS[layers](), *model[2:])
    data = examples(100 if layers == "norm" else 97)
    outputs = Outputs(folder=folder, checkpoint_steps=4)
    done = train(
        model, data, {"test": data}, options(), method=method_of(name, **options_of), outputs=outputs, stop=stop
    )
    record = {key: value for key, value in done.record.items() if key != "seconds"}
    return record, {key: value.tolist() for key, value in model.state_dict().items()}


_LAYERS = {"dropout": nn.Dropout, "norm": lambda: nn.BatchNorm1d(32, dtype=torch.float64)}


def apart(folder: Path) -> object:
    """Each rank with a folder of its own, of which one has a checkpoint."""
    return trained(folder / f"rank-{processes.rank()}", "static", {}, 2)


def unwritable(folder: Path) -> object:
    """A first rank whose folder cannot hold a metrics file."""
    if processes.rank() == 0:
        (folder / "metrics.jsonl").mkdir(parents=True)
    return trained(folder, "static", {}, 1)


def train_wrapped() -> object:
    model = network()
    wrapper = DistributedDataParallel(model)
    return train(wrapper, examples(8), {}, options())


def noise() -> list[float]:
    """What dropout draws for the first example of each step."""
    drawn: list[float] = []

    class Draw(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                drawn.append(float(torch.rand(())))
            return x

    model = nn.Sequential(Draw(), nn.Linear(20, 5).double())
    train(model, examples(8), {}, options(epochs=4, batch_size=4))
    return drawn


def ran(recipe: Recipe, out: Path) -> tuple[tuple[float, float], int]:
    result = run(recipe, out, progress=False)
    return (result.train_loss, result.test_loss), result.processes
