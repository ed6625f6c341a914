"""SET beside a fixed random topology and a dense network on the small problem of its authors' tutorial (IJCAI 2019).

Fashion-MNIST, 2,000 training and 1,000 test images drawn by `np.random.seed(0)`, pixels in [0, 1]; 784-1000-1000-1000-10,
ReLU, sigmoid outputs, half the squared error; epsilon (in + out) random positions a layer, doubles fall together, epsilon
13: 81.5 thousand weights, 2.9 %; 400 epochs, batches of 40, learning rate 0.05, momentum 0.9, weight decay 2e-4, dropout
0.2; SET exchanges 30 % an epoch. Test accuracy after the last epoch, five seeds, and its mean over the last twenty, which
for SET follow an exchange, but for the very last.

Two forms. `tutorial` is the published one, which does not follow the gradient of its loss: the sigmoid's slope is taken at
its output in place of its input, so that it never vanishes; dropped neurons are multiplied by 0 on the way forward alone,
and what a layer puts out, bias included, is scaled by 0.8 in evaluation; the decay of all parameters is not multiplied by
the learning rate; the dense network steps biases at 0.001 and weights at 0.04 (0.001 on gradients summed over a batch); all
weights start from N(0, 0.1^2). `plain` is the same problem as one writes it in torch: autograd, `nn.Dropout`, SGD's own
decay; its dense network starts from Glorot's uniform distribution, since from N(0, 0.1^2) its outputs saturate.

Runs that are finished are not repeated. Writes records/set-anchor.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from functools import partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pollard
from pollard import data
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.training import Examples, generator

RECORD = Path(__file__).parent / "records" / "set-anchor.json"
FORMS = ("tutorial", "plain")
WIDTHS = (784, 1000, 1000, 1000, 10)
EPSILON, EPOCHS, BATCH, TRAIN, TEST = 13, 400, 40, 2000, 1000
LR, MOMENTUM, DECAY, DROPOUT = 0.05, 0.9, 2e-4, 0.2
LAST = 20  # epochs whose accuracies are kept
# Test accuracy in %, mean and deviation over 5 seeds, of the tutorial of the authors' repository.
PUBLISHED = {"static": (80.60, 0.61), "set": (82.56, 0.91), "dense": (81.98, 0.26)}


def examples() -> tuple[Examples, Examples]:
    """The images and their classes: to train on, and to test on."""
    whole = data.load("fashion-mnist")
    draw = np.random.RandomState(0)
    train_at, test_at = (torch.from_numpy(draw.permutation(len(x))) for x in (whole.train_x, whole.test_x))
    darkest, range_ = whole.train_x.min(), whole.train_x.max() - whole.train_x.min()
    return (
        Examples((whole.train_x[train_at[:TRAIN]] - darkest) / range_, whole.train_y[train_at[:TRAIN]]),
        Examples((whole.test_x[test_at[:TEST]] - darkest) / range_, whole.test_y[test_at[:TEST]]),
    )


def normal(topology: Topology, draw: torch.Generator | None) -> Tensor:
    """Values from N(0, 0.1^2)."""
    return torch.randn(topology.nnz, generator=draw) * 0.1


def layer(method: str, form: str, inputs: int, outputs: int, draw: torch.Generator) -> nn.Module:
    """One layer, biases 0: dense, or with an Erdos-Renyi topology."""
    made: nn.Linear | SparseLinear
    if method == "dense":
        made = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        first = partial(nn.init.normal_, std=0.1) if form == "tutorial" else nn.init.xavier_uniform_
        first(made.weight, generator=draw)
    else:
        drawn = torch.randint(inputs * outputs, (EPSILON * (inputs + outputs),), generator=draw).unique()
        topology = Topology.from_positions((outputs, inputs), "unstructured", drawn)
        made = SparseLinear(inputs, outputs, topology, initialiser=normal, generator=draw)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made


class ForwardDropout(nn.Module):
    """Sets neurons to 0, scales nothing, and lets the gradient pass as if nothing were dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` times a mask, the derivative 1."""
        return x - (x * (torch.rand_like(x) < DROPOUT)).detach() if self.training else x


class ScaledInEvaluation(nn.Module):
    """What makes up, in evaluation, for the neurons that were there in training."""

    def forward(self, z: Tensor) -> Tensor:
        """`z`, or `0.8 z`."""
        return z if self.training else z * (1.0 - DROPOUT)


def network(method: str, form: str, seed: int) -> nn.Sequential:
    """ReLU and dropout between the layers; a sigmoid comes with the loss."""
    draw = generator(seed, "weights")
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        parts.append(layer(method, form, inputs, outputs, draw))
        if form == "tutorial":
            parts += [ScaledInEvaluation()] if inputs != WIDTHS[0] else []
            parts += [nn.ReLU(), ForwardDropout()]
        else:
            parts += [nn.ReLU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*parts[:-2])


def squared_error(form: str, z: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance of `sigmoid(z)` to the one-hot target, a mean over examples, or what has its published slope."""
    wanted = nn.functional.one_hot(target, WIDTHS[-1])
    y = z.sigmoid()
    if form == "plain":
        return (y - wanted).square().sum(1).mean() / 2
    at_output = y.detach().sigmoid()
    slope = (y.detach() - wanted) * at_output * (1.0 - at_output)
    return (z * slope).sum(1).mean()


def optimizer_of(model: nn.Module, method: str, form: str) -> torch.optim.Optimizer:
    """SGD with momentum, and the decay of the form."""
    if form == "plain":
        return torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    rates = (0.04, 0.001) if method == "dense" else (LR, LR)
    groups = [{"params": params, "lr": lr} for params, lr in zip((weights, biases), rates, strict=True)]
    optimizer = torch.optim.SGD(groups, LR, MOMENTUM)

    def decay(optimizer: torch.optim.Optimizer, *_: object) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                torch._foreach_mul_(group["params"], 1.0 - DECAY)

    optimizer.register_step_pre_hook(decay)
    return optimizer


def accuracy(model: nn.Module, on: Examples) -> float:
    """In %."""
    model.eval()
    with torch.inference_mode():
        found = (model(on.x).argmax(1) == on.y).float().mean()
    model.train()
    return round(100 * float(found), 2)


def batches(on: Examples, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch, in an order of its own."""
    order = torch.randperm(len(on.x), generator=generator(seed, f"epoch {epoch}"))
    for batch in order.split(BATCH):
        yield on.x[batch], on.y[batch]


def work_on(run: tuple[str, int], form: str, out: Path, epochs: int) -> dict[str, Any]:
    """Train one network, and write what it reached; or read it, if that was done."""
    method, seed = run
    path = out / form / f"{method}-{seed}-{epochs}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train_set, test_set = examples()
    model = network(method, form, seed)
    optimizer = optimizer_of(model, method, form)
    an_epoch = TRAIN // BATCH
    sparse = None
    if method != "dense":
        options: dict[str, Any] = {} if method == "static" else {"every": an_epoch}
        sparse = pollard.sparse_training(model, optimizer, method, steps=epochs * an_epoch, seed=seed, **options)
    test = []
    for epoch in range(epochs):
        for x, y in batches(train_set, seed, epoch):
            optimizer.zero_grad()
            squared_error(form, model(x), y).backward()
            (sparse or optimizer).step()
        if epoch >= epochs - LAST:
            test.append(accuracy(model, test_set))
    found = {
        "method": method,
        "seed": seed,
        "train_accuracy": accuracy(model, train_set),
        "test_accuracy": test,
        "explored_rate": float(sparse.metrics()["explored_rate"]) if sparse else 1.0,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return found


def row(form: str, method: str, found: list[dict[str, Any]], epochs: int) -> dict[str, Any]:
    """Mean and deviation over seeds, beside the published ones."""
    chosen = sorted((each for each in found if each["method"] == method), key=lambda each: int(each["seed"]))
    test = [each["test_accuracy"][-1] for each in chosen]
    lately = statistics.mean(statistics.mean(each["test_accuracy"]) for each in chosen)
    mean, deviation = PUBLISHED[method]
    return {
        "form": form,
        "method": method,
        "epochs": epochs,
        "test_accuracy_percent": test,
        "mean": round(statistics.mean(test), 2),
        "standard_deviation": round(statistics.stdev(test), 2) if len(test) > 1 else None,
        f"mean_of_last_{LAST}": round(lately, 2),
        "train_accuracy_percent": round(statistics.mean(each["train_accuracy"] for each in chosen), 2),
        "explored_rate": round(statistics.mean(each["explored_rate"] for each in chosen), 3),
        "published": mean,
        "published_standard_deviation": deviation,
    }


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/set-anchor"), help="where finished runs are kept")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write records/set-anchor.json")
    given = parser.parse_args()
    rows = []
    with get_context("spawn").Pool(given.workers) as pool:
        for form in given.forms.split(","):
            found = []
            runs = [(method, seed) for seed, method in product(range(given.seeds), PUBLISHED)]
            work = partial(work_on, form=form, out=given.out, epochs=given.epochs)
            for done in pool.imap_unordered(work, runs):
                print(form, json.dumps(done), flush=True)
                found.append(done)
            rows += [row(form, method, found, given.epochs) for method in PUBLISHED]
    if given.record:
        RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for each in rows:
        print(json.dumps(each))


if __name__ == "__main__":
    main()
