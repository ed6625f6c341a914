"""SET beside a fixed random topology and a dense network on CIFAR-10, the MLP of its paper, against the authors' own curves.

3072-4000-1000-4000-10 with SReLU and dropout 0.3; 20 (in + out) / (in out) of the hidden layers' weights at random, 382
thousand, 1.9 %, the last layer dense; values as a dense layer would draw them (Glorot's uniform); SGD, learning rate 0.01,
momentum 0.9, batches of 100; each pixel standardised; images turned by up to 10 degrees, shifted by up to a tenth, mirrored,
nearest pixels. SET exchanges 30 % after each epoch, newcomers start at 0, momentum starts anew, as in the authors' code.
Source: Mocanu et al. 2018; code and accuracies after each of 1,000 epochs, one run each: dcmocanu,
sparse-evolutionary-artificial-neural-networks, SET-MLP-Keras-Weights-Mask.

Test accuracy after every epoch; a run that is stopped goes on from where it was a minute before. Writes records/set-cifar.json.
On another device than the CPU (--device cuda) images, orders and changes are the same, dropout draws other numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import pollard
from pollard import data
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.training import Examples, generator
from pollard.training.placing import sent

RECORD = Path(__file__).parent / "records" / "set-cifar.json"
WIDTHS = (3072, 4000, 1000, 4000, 10)
EPSILON, EPOCHS, BATCH, LR, MOMENTUM, DROPOUT = 20, 200, 100, 0.01, 0.9, 0.3
DEGREES, SHIFT = 10.0, 0.1
FIRST = 3  # steps before a graph is made of one: what they allocate and compile is no part of it
LAST = 20  # epochs that are averaged
SECONDS = 60  # between states that are written
# Published test accuracy in %, one run each: the mean of epochs 181 to 200, and the best of 1,000 epochs.
PUBLISHED = {"set": 65.5, "static": 63.43, "dense": 66.46}
BEST = {"set": 73.85, "static": 69.21, "dense": 70.89}


# Where nothing compiles, it is a dozen passes.
torch._dynamo.config.suppress_errors = True  # noqa: SLF001 - no public name


@torch.compile  # one pass over what would be a dozen
def bent(x: Tensor, left: Tensor, below: Tensor, width: Tensor, above: Tensor) -> Tensor:
    """The identity between `left` and `left + |width|`, slopes `below` and `above` beyond."""
    right = left + width.abs()
    return x + (x - left).clamp_max(0) * (below - 1) + (x - right).clamp_min(0) * (above - 1)


class Dropout(nn.Module):
    """torch's, by 16 bits a number: drawing one number for each took longer than all the rest of a sparse step."""

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, features)`, the same shape."""
        if not self.training or x.device.type != "cpu":
            return functional.dropout(x, DROPOUT, self.training)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape[1], x.shape[0]).t() >= round(DROPOUT * 2**16) - 2**15
        return x * kept.float().div_(1 - DROPOUT)


class SReLU(nn.Module):
    """Where each neuron bends, and its slopes beyond, are learned. Source: Jin et al. 2016."""

    def __init__(self, features: int, draw: torch.Generator) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(features))
        self.below = nn.Parameter(torch.rand(features, generator=draw))
        self.width = nn.Parameter(5 * torch.rand(features, generator=draw))
        self.above = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, features)`, the same shape."""
        y: Tensor = bent(x, self.left, self.below, self.width, self.above)
        return y


def layer(method: str, inputs: int, outputs: int, draw: torch.Generator) -> nn.Module:
    """One layer, biases 0: dense, or with an Erdos-Renyi topology."""
    scale = math.sqrt(6 / (inputs + outputs))
    made: nn.Linear | SparseLinear
    if method == "dense" or outputs == WIDTHS[-1]:
        made = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        nn.init.uniform_(made.weight, -scale, scale, generator=draw)
    else:
        share = EPSILON * (inputs + outputs) / (inputs * outputs)
        kept = (torch.rand(inputs * outputs, generator=draw) < share).nonzero().flatten()
        topology = Topology.from_positions((outputs, inputs), "unstructured", kept)

        def values(topology: Topology, draw: torch.Generator | None) -> Tensor:
            return scale * (2 * torch.rand(topology.nnz, generator=draw) - 1)

        made = SparseLinear(inputs, outputs, topology, initialiser=values, generator=draw)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made


def network(method: str, seed: int) -> nn.Sequential:
    """SReLU and dropout between the layers."""
    draw, parts = generator(seed, "weights"), list[nn.Module]()
    for inputs, outputs in pairwise(WIDTHS):
        parts += [layer(method, inputs, outputs, draw), SReLU(outputs, draw), Dropout()]
    return nn.Sequential(nn.Flatten(), *parts[:-2])


def examples(device: torch.device) -> tuple[Examples, Examples]:
    """Images `(count, 3, 32, 32)` with each pixel of mean 0 and deviation 1 over the training images, and their classes."""
    whole = data.load("cifar-10")
    train_x, test_x = (x.reshape(len(x), -1).float() for x in (whole.train_x, whole.test_x))
    mean, deviation = train_x.mean(0), train_x.std(0, correction=0)
    train_x, test_x = ((x.sub_(mean).div_(deviation)).view(-1, 3, 32, 32) for x in (train_x, test_x))
    return Examples(train_x.to(device), whole.train_y.to(device)), Examples(test_x.to(device), whole.test_y.to(device))


def turns(count: int, draw: torch.Generator) -> Tensor:
    """By how much so many images are turned, shifted and mirrored: `(count, 2, 3)`."""
    angle, down, right = (2 * torch.rand(3, count, generator=draw) - 1) * torch.tensor(
        [[math.radians(DEGREES)], [2 * SHIFT], [2 * SHIFT]]
    )
    mirror = 1 - 2.0 * torch.randint(2, (count,), generator=draw)
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos * mirror, -sin, right], 1), torch.stack([sin * mirror, cos, down], 1)]
    return torch.stack(rows, 1)


def moved(images: Tensor, by: Tensor) -> Tensor:
    """Each turned, shifted and mirrored; beyond the edge its nearest pixel goes on."""
    grid = functional.affine_grid(sent(by, images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="border", align_corners=False)


def batches(on: Examples, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch, in an order and with changes of its own."""
    draw = generator(seed, f"epoch {epoch}")
    order = torch.randperm(len(on.x), generator=draw).split(BATCH)
    by = [turns(len(chosen), draw) for chosen in order]
    together = 1 if on.x.device.type == "cpu" else 100  # a GPU waits for each call
    for first in range(0, len(order), together):
        some = slice(first, first + together)
        chosen = sent(torch.cat(order[some]), on.x.device)
        yield from zip(moved(on.x[chosen], torch.cat(by[some])).split(BATCH), on.y[chosen].split(BATCH), strict=True)


Step = Callable[[Tensor, Tensor], None]


def replayed(step: Step, x: Tensor, y: Tensor) -> Step:
    """The same step as a CUDA graph, which starts its hundred kernels at once; it has been taken by itself before."""
    held, graph = (x.clone(), y.clone()), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*held)

    def replay(x: Tensor, y: Tensor) -> None:
        held[0].copy_(x)
        held[1].copy_(y)
        graph.replay()

    return replay


def accuracy(model: nn.Module, on: Examples) -> float:
    """In %."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(x).argmax(1) for x in on.x.split(1000)])
        right = int((found == on.y).sum())
    model.train()
    return round(100 * right / len(on.y), 2)


def begun(method: str, seed: int, an_epoch: int, device: torch.device) -> list[Any]:
    """A model, its optimizer, and where it is sparse what steps that."""
    model = network(method, seed).to(device)
    optimizer: Any = torch.optim.SGD(model.parameters(), LR, MOMENTUM, fused=True)
    if method == "dense":
        return [model, optimizer]
    options: dict[str, Any] = {"every": an_epoch, "deviation": 0.0} if method == "set" else {}
    # A schedule that no one reaches: the share that is exchanged stays, and a run may be made longer.
    return [
        model,
        optimizer,
        pollard.sparse_training(model, optimizer, method, steps=1000 * an_epoch, seed=seed, **options),
    ]


def work_on(run: tuple[str, int], out: Path, epochs: int, where: str) -> dict[str, Any]:
    """Train one network to the end, from where it was left, and say what it reached after each epoch."""
    method, seed = run
    state = out / f"{method}-{seed}.pt"
    reached, *saved = torch.load(state, map_location="cpu") if state.exists() else [[]]
    found = {"method": method, "seed": seed, "test_accuracy": reached}
    if len(reached) >= epochs:
        return found
    torch.set_num_threads(1)
    device = torch.device(where)
    train_set, test_set = examples(device)
    parts = begun(method, seed, len(train_set.x) // BATCH, device)
    for part, held in zip(parts, saved, strict=False):
        part.load_state_dict(held)
    model, optimizer = parts[:2]

    def eager(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        parts[-1].step()

    step: Step = eager
    out.mkdir(parents=True, exist_ok=True)
    written = time.monotonic()
    for epoch in range(len(reached), epochs):
        torch.manual_seed(seed * 10_000 + epoch)  # dropout
        for number, (x, y) in enumerate(batches(train_set, seed, epoch)):
            if number == FIRST and step is eager and device.type == "cuda" and method == "dense":
                step = replayed(eager, x, y)
            step(x, y)
        if method == "set":
            for kept in optimizer.state.values():
                kept["momentum_buffer"].zero_()
        reached.append(accuracy(model, test_set))
        if time.monotonic() - written > SECONDS or epoch + 1 == epochs:
            torch.save([reached, *(part.state_dict() for part in parts)], out / f"{state.name}.new")
            (out / f"{state.name}.new").replace(state)
            written = time.monotonic()
        print(method, seed, epoch + 1, reached[-1], flush=True)
    return found


def row(method: str, found: list[dict[str, Any]], epochs: int) -> dict[str, Any]:
    """Means over the last epochs and their deviation over seeds, beside what was published of the same epochs."""
    runs = sorted((each for each in found if each["method"] == method), key=lambda each: int(each["seed"]))
    lately = [statistics.mean(each["test_accuracy"][epochs - LAST : epochs]) for each in runs]
    return {
        "method": method,
        "seeds": len(runs),
        "epochs": epochs,
        f"mean_of_last_{LAST}": round(statistics.mean(lately), 2),
        "standard_deviation": round(statistics.stdev(lately), 2) if len(lately) > 1 else None,
        "published": PUBLISHED[method],
        "published_best_of_1000": BEST[method],
        "test_accuracy_percent": [each["test_accuracy"] for each in runs],
    }


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/set-cifar"), help="where runs are kept, and go on from")
    parser.add_argument("--runs", default="set:3,static:3,dense:1", help="methods, and of each how many seeds")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--record", action="store_true", help="write records/set-cifar.json")
    given = parser.parse_args()
    seeds = {method: int(count) for method, count in (each.split(":") for each in given.runs.split(","))}
    runs = [(method, seed) for seed in range(max(seeds.values())) for method in seeds if seed < seeds[method]]
    with get_context("spawn").Pool(given.workers) as pool:
        work = partial(work_on, out=given.out, epochs=given.epochs, where=given.device)
        found = list(pool.imap_unordered(work, runs))
    rows = [row(method, found, given.epochs) for method in seeds]
    if given.record:
        RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for each in rows:
        print(json.dumps({name: value for name, value in each.items() if name != "test_accuracy_percent"}))


if __name__ == "__main__":
    main()
