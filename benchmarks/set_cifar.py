"""SET beside a fixed random topology and a dense network on CIFAR-10, the MLP of its paper, against the authors' own curves.

The network and its images are those of `set_network.py`; SGD, learning rate 0.01, momentum 0.9. SET exchanges 30 % after each
epoch, newcomers start at 0, momentum starts anew, as in the authors' code. Source: Mocanu et al. 2018; code and accuracies after
each of 1,000 epochs, one run each: dcmocanu, sparse-evolutionary-artificial-neural-networks, SET-MLP-Keras-Weights-Mask.

Test accuracy after every epoch; a run that is stopped goes on from where it was a minute before. On a GPU (--device cuda) all runs
go at once, their steps CUDA graphs, which SET makes anew after each exchange; images, orders, changes and first weights are those of
the CPU, dropout draws other numbers. --record writes records/set-cifar.json, where rows of other devices stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import overlapping
import torch
from overlapping import Replayed
from set_network import BATCH, batches, examples, network
from torch import Tensor
from torch.nn import functional

import pollard
from pollard.formats.store import write_atomic
from pollard.report.machine import device_name
from pollard.training import Examples

RECORD = Path(__file__).parent / "records" / "set-cifar.json"
EPOCHS, LR, MOMENTUM = 200, 0.01, 0.9
STEPS = 50  # that are queued at once: while weights of one run are exchanged, the others have enough to do
LAST = 20  # epochs that are averaged
# Published test accuracy in %, one run each: the mean of the last 20 of so many epochs, and the best of all 1,000.
PUBLISHED = {
    "set": {200: 65.5, 400: 69.46, 600: 71.4, 1000: 73.41},
    "static": {200: 63.43, 400: 66.15, 600: 67.26, 1000: 68.67},
    "dense": {200: 66.46, 400: 68.79, 600: 69.24, 1000: 69.52},
}
BEST = {"set": 73.85, "static": 69.21, "dense": 70.89}
WHOLE = 1000
SAME = ("method", "device", "precision")  # what runs of one row have in common


class Name(NamedTuple):
    """Of a run."""

    method: str
    seed: int


class Run(overlapping.Run):
    """One network, its optimizer, and where it is sparse what steps that."""

    def __init__(self, name: Name, train: Examples, test: Examples, epochs: int) -> None:
        # What is wanted first goes first.
        super().__init__(train.x.device, priority=0 if name.seed else -1)
        self.name, self.train, self.test, self.epochs = name, train, test, epochs
        self.an_epoch, self.reached = -(-len(train.x) // BATCH), list[Any]()
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.dropout = torch.Generator(self.device)
        self.model = network(*name, self.dropout).to(self.device)
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), LR, MOMENTUM, fused=True)
        self.parts: list[Any] = [self.model, self.optimizer]
        if name.method != "dense":
            options: dict[str, Any] = {"every": self.an_epoch, "deviation": 0.0} if name.method == "set" else {}
            options |= {"steps": WHOLE * self.an_epoch, "seed": name.seed}
            self.parts.append(pollard.sparse_training(self.model, self.optimizer, name.method, **options))
        self.take = Replayed(self.step, self.captured, stream=self.stream, draws=[self.dropout])

    def __str__(self) -> str:
        known = [each for each in self.reached if isinstance(each, float)]
        told = f", {known[-1]} % after {len(known)}" if known else ""
        return f"{self.name.method} {self.name.seed}: {len(self.reached)} epochs{told}"

    @property
    def left(self) -> int:
        """Steps that are not queued yet."""
        return max(0, self.epochs * self.an_epoch - self.steps)

    @property
    def exchanges(self) -> bool:
        """Whether SET exchanges weights in the next step."""
        return self.name.method == "set" and not (self.steps + 1) % self.an_epoch

    @property
    def alone(self) -> bool:
        """The host looks at all weights when they are exchanged."""
        return super().alone or self.exchanges

    def together(self, count: int) -> int:
        """An exchange is not queued behind other steps."""
        before = self.an_epoch - 1 - self.steps % self.an_epoch if self.name.method == "set" else count
        return super().together(min(count, before or 1))

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, and its gradients."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(x), y)
        loss.backward()
        return loss.detach()

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One of SGD's, which may move the topology, and the loss."""
        loss = self.slope(x, y)
        if self.name.method != "dense":
            self.parts[-1].steps = self.steps  # it has heard nothing of those that graphs took
        self.parts[-1].step()
        return loss

    def captured(self, x: Tensor, y: Tensor) -> Tensor:
        """The same where no topology moves."""
        loss = self.slope(x, y)
        self.optimizer.step()
        return loss

    def follow(self) -> None:
        """The next step, and at the end of an epoch the exchange and the test accuracy."""
        epoch, place = divmod(self.steps, self.an_epoch)
        if not place:
            self.dropout.manual_seed(self.name.seed * 10_000 + epoch)
            self.batches = batches(self.train, self.name.seed, epoch)
        x, y = next(self.batches)
        if self.exchanges:
            self.step(x, y)
            self.take.anew()
            for held in self.optimizer.state.values():
                held["momentum_buffer"].zero_()
        else:
            self.take(x, y)
        self.steps += 1
        if not self.steps % self.an_epoch:
            self.reached.append(self.accuracy())

    def accuracy(self) -> Tensor | float:
        """Of all test images, in %; a GPU is not waited for."""
        self.model.eval()
        with torch.inference_mode():
            some = self.test.x.split(1000 if self.test.x.is_cpu else 5000)
            right = (torch.cat([self.model(x).argmax(1) for x in some]) == self.test.y).sum()
        self.model.train()
        return right if right.is_cuda else self.percent(right)

    def percent(self, right: Tensor) -> float:
        """So many of all test images."""
        return round(100 * int(right) / len(self.test.y), 2)

    def state(self) -> dict[str, Any]:
        """All that it takes to go on."""
        self.reached = [self.percent(each) if isinstance(each, Tensor) else each for each in self.reached]
        parts = [part.state_dict() for part in self.parts]
        return {"steps": self.steps, "reached": self.reached, "dropout": self.dropout.get_state(), "parts": parts}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for part, held in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(held)
        self.steps, self.reached = state["steps"], list(state["reached"])
        epoch, place = divmod(self.steps, self.an_epoch)
        if place:
            self.dropout.set_state(state["dropout"])
            self.batches = batches(self.train, self.name.seed, epoch, place)


class Contest(overlapping.Contest):
    """Runs, and of each its state and its accuracies in files of its own."""

    lot = STEPS

    def __init__(self, names: list[Name], on: tuple[Examples, Examples], out: Path, epochs: int) -> None:
        super().__init__(on[0].x.device, out)
        self.names, self.on, self.epochs = list(names), on, epochs

    def next(self) -> Run | None:
        """The first that waits, from where it was left."""
        if not self.names:
            return None
        run = Run(self.names.pop(0), *self.on, self.epochs)
        path = self.out / f"{stem(run.name, self.device)}.pt"
        if path.exists():
            run.load(torch.load(path, map_location="cpu"))
        return run

    def over(self, run: Run) -> None:
        """It may be made longer some day."""
        self.keep(run)
        print(run, flush=True)

    def save(self) -> None:
        """Of all that are under way."""
        for run in self.live:
            self.keep(run)

    def keep(self, run: Run) -> None:
        """A run's state, and what there is to read."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomic(self.out / f"{stem(run.name, self.device)}.pt", partial(torch.save, run.state()))
        told = {
            **run.name._asdict(),
            "device": device_name(self.device),
            "precision": "float32",
            "test_accuracy": run.reached,
        }
        write_atomic(
            self.out / f"{stem(run.name, self.device)}.json",
            (json.dumps(told) + "\n").encode(),
        )


def stem(name: Name, device: torch.device) -> str:
    """Of the files of a run: no device goes on with what another began."""
    return f"{name.method}-{name.seed}-{device.type}"


def work_on(names: list[Name], out: Path, epochs: int, until: float, device: torch.device) -> None:
    """Train networks at once, from where they were left to the end, or until that time."""
    torch.set_num_threads(1)
    contest = Contest(names, examples(device), out, epochs)
    contest.go(len(names), until - time.time())
    print(f"{contest.steps} steps in {contest.seconds:.0f} s", flush=True)


def row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of runs of one method on one device: what they came to after so many epochs, beside what was published of the same epochs."""
    runs = [each["test_accuracy"] for each in sorted(found, key=lambda each: int(each["seed"]))]
    method = found[0]["method"]
    return {
        **{name: found[0][name] for name in SAME},
        "epochs": [len(each) for each in runs],
        "after": {
            str(epochs): {**over_seeds(epochs, runs), "published": published}
            for epochs, published in PUBLISHED[method].items()
            if any(len(each) >= epochs for each in runs)
        },
        "published_best_of_1000": BEST[method],
        "test_accuracy_percent": runs,
    }


def over_seeds(epochs: int, runs: list[list[float]]) -> dict[str, float | None]:
    """The mean of the last of so many epochs over the runs that have as many, and its deviation where those are several."""
    found = [statistics.mean(each[epochs - LAST : epochs]) for each in runs if len(each) >= epochs]
    deviation = round(statistics.stdev(found), 2) if len(found) > 1 else None
    return {"seeds": len(found), "mean": round(statistics.mean(found), 2), "deviation": deviation}


def rows(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each method on each device."""
    cells = dict[tuple[str, ...], list[dict[str, Any]]]()
    for each in found:
        cells.setdefault(tuple(each[name] for name in SAME), []).append(each)
    return [row(each) for each in cells.values()]


def joined(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a record, with new ones in the place of those of the same method, device and precision."""
    by = {tuple(each[name] for name in SAME): each for each in (*before, *now)}
    return list(by.values())


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/set-cifar"), help="where runs are kept, and go on from")
    parser.add_argument("--runs", default="set:3,static:3,dense:1", help="methods, and of each how many seeds")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="1000 were published (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes, on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after so many; the same command goes on"
    )
    parser.add_argument("--record", action="store_true", help="write records/set-cifar.json")
    given = parser.parse_args()
    device = torch.device(given.device)
    seeds = {method: int(count) for method, count in (each.split(":") for each in given.runs.split(","))}
    names = [Name(method, seed) for seed in range(max(seeds.values())) for method in seeds if seed < seeds[method]]
    work = partial(work_on, out=given.out, epochs=given.epochs, until=time.time() + given.seconds, device=device)
    if device.type == "cuda":
        work(names)
    else:
        with get_context("spawn").Pool(given.workers) as pool:
            pool.map(work, [[name] for name in names], chunksize=1)
    paths = [given.out / f"{stem(name, device)}.json" for name in names]
    found = rows(json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists())
    (given.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.record:
        before = json.loads(RECORD.read_text(encoding="utf-8"))
        RECORD.write_text(json.dumps(joined(before, found), indent=1) + "\n", encoding="utf-8")
    for each in found:
        print(json.dumps({name: value for name, value in each.items() if name != "test_accuracy_percent"}))


if __name__ == "__main__":
    main()
