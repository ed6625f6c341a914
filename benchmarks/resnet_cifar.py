"""Five ways to choose at one go what to keep of ResNet-20 on CIFAR-10, beside published figures; all runs at once on one GPU.

The protocol of a student reproduction of Tanaka et al. 2020 (michaelneuder, COS568-A1; code: ganguli-lab, Synaptic-Flow; one
seed): Adam at 0.001 throughout, batches of 256, the last of 80, no weight decay; 4-pixel crops within black, flips; weights
drawn by Kaiming's law, biases 0, shortcuts of 1 x 1 convolutions; all layers pruned together, by scores of 100 changed
training images in evaluation mode; then 100 epochs. Magnitudes are of 200 epochs of dense training, after which Adam goes on.
Test accuracy is that of the last epoch.

Dense weights under masks: what is kept, and what it loses, is that of compressed storage. On a GPU each run has a stream, on which
whole steps are replayed as CUDA graphs, so that runs overlap; float32, convolutions in TF32 as torch has it. Images, orders and
changes are those of the CPU, where runs come one after the other. A run that is stopped goes on from where it was a minute before.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import overlapping
import torch
from overlapping import Replayed
from torch import Tensor, nn
from torch.nn import functional

import pollard
from pollard import data
from pollard.formats.store import write_atomic
from pollard.formats.topology import Topology
from pollard.networks import Ends
from pollard.networks.residual import ResNet
from pollard.pruning.scoring import Scoring
from pollard.report.machine import device_name
from pollard.training import Examples, generator
from pollard.training.augmentation import augmented, draw
from pollard.training.placing import in_own_order, sent

RECORD = Path(__file__).parent / "records" / "resnet-cifar.json"
EPOCHS, DENSE_EPOCHS, BATCH, LR, SCORED = 100, 200, 256, 0.001, 100
MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CHANGES = "crop,flip"
DENSITIES = (0.1, 10**-0.25)
# Published test accuracy in %, at these densities; what is wanted most first.
PUBLISHED = {
    "magnitude": (85.02, 88.76),
    "synflow": (44.20, 86.20),
    "grasp": (79.21, 84.64),
    "snip": (80.19, 86.32),
    "random": (81.73, 86.17),
}
STEPS = 14  # that are queued at once
EVERY = 10  # epochs between test accuracies


class Name(NamedTuple):
    """Of a run."""

    method: str
    density: float
    seed: int

    @property
    def epochs(self) -> int:
        """How many there are of it."""
        return DENSE_EPOCHS if self.method == "dense" else EPOCHS

    def __str__(self) -> str:
        return f"{self.method} {self.density:.3g} {self.seed}"

    @property
    def dense(self) -> Name:
        """The run whose magnitudes it may want."""
        return Name("dense", 1.0, self.seed)


class Images:
    """CIFAR-10 on a device, in bytes."""

    def __init__(self, train: Examples, test: Examples, device: torch.device) -> None:
        self.device = device
        self.train, self.test = (Examples(on.x.to(device), on.y.to(device)) for on in (train, test))
        self.mean, self.scale = (torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, DEVIATION))

    def changed(self, chosen: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Training images cropped and mirrored as drawn for an epoch, and their classes."""
        by = [sent(each, self.device) for each in draw(CHANGES, len(chosen), seed, epoch)]
        chosen = sent(chosen, self.device)
        images = augmented(CHANGES, self.train.x[chosen], by)
        return in_own_order(images), self.train.y[chosen]

    def epoch(self, seed: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """Its batches, in an order and with changes of its own."""
        order = torch.randperm(len(self.train.x), generator=generator(seed, f"epoch {epoch}"))
        return list(zip(*(each.split(BATCH) for each in self.changed(order, seed, epoch)), strict=True))

    def scored(self, seed: int) -> tuple[Tensor, Tensor]:
        """The batch that scores are taken on."""
        order = torch.randperm(len(self.train.x), generator=generator(seed, "scoring batch"))
        x, y = self.changed(order[:SCORED], seed, -1)
        return self.standardised(x), y

    def standardised(self, x: Tensor) -> Tensor:
        """Bytes as the network takes them."""
        return x.float().div_(255).sub_(self.mean).div_(self.scale)


def examples(device: torch.device) -> Images:
    """Of all training and test images; each channel has pixels from black to white, so that bytes can be told."""
    whole = data.load("cifar-10")
    train, test = (x.unflatten(1, whole.shape) for x in (whole.train_x, whole.test_x))
    low, high = (limit(train, (0, 2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
    train, test = (((x - low) / (high - low)).mul_(255).round_().byte() for x in (train, test))
    return Images(Examples(train, whole.train_y), Examples(test, whole.test_y), device)


def network(seed: int) -> ResNet:
    """ResNet-20, as the seed draws it."""
    model, drawn = ResNet((16, 32, 64), 3, Ends((3, 32, 32), 10), projects=True), generator(seed, "weights")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=drawn)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


class Run(overlapping.Run):
    """One network and its optimizer."""

    def __init__(self, name: Name, images: Images, *, autocast: bool) -> None:
        # Others wait for dense weights.
        super().__init__(images.device, priority=-1 if name.method in ("dense", "magnitude") else 0)
        self.name, self.images, self.autocast = name, images, autocast
        self.on_gpu = images.device.type == "cuda"
        self.model: nn.Module = network(name.seed).to(images.device)
        if self.on_gpu:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.an_epoch = -(-len(images.train.x) // BATCH)
        self.reached = dict[int, Any]()
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.take = Replayed(self.step, stream=self.stream)
        self.optimizer = self.adam()

    def adam(self) -> torch.optim.Adam:
        """One that a graph may hold."""
        return torch.optim.Adam(self.model.parameters(), LR, capturable=self.on_gpu, fused=True)

    def keep(self, plan: dict[str, Topology]) -> None:
        """Hold what the plan keeps; Adam goes on where it has begun."""
        before = self.optimizer
        pollard.sparsify_(self.model, plan, storage="masked")
        self.optimizer = self.adam()
        if before.state:
            moments = [before.state[each] for each in before.param_groups[0]["params"]]
            for own, held in zip(self.model.parameters(), moments, strict=True):
                found = {what: each.reshape(own.shape if each.dim() else ()).clone() for what, each in held.items()}
                self.optimizer.state[own] = found

    def choose(self, dense: dict[str, Any] | None) -> None:
        """What to keep: of a new network, or by magnitude of what dense training came to."""
        method, density, seed = self.name
        if method == "magnitude":
            assert dense is not None
            self.load({**dense, "steps": 0, "reached": {}})
        if method != "dense":
            looks = {"batch": self.images.scored(seed), "rounds": 1, "scoring": Scoring(mode="eval")}
            plan = pollard.prune(
                self.model, method, density, allocation="global", generator=generator(seed, "pruning"),
                **(looks if method in ("snip", "grasp", "synflow") else {}),
            )  # fmt: skip
            self.keep(dict(plan))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in bytes."""
        with torch.autocast(x.device.type, torch.bfloat16, self.autocast, cache_enabled=False):
            logits: Tensor = self.model(self.images.standardised(x))
        return logits

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One of Adam's, and the loss."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.forward(x).float(), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def follow(self) -> None:
        """The next step, and at times the test accuracy."""
        epoch, place = divmod(self.steps, self.an_epoch)
        if not place or not self.batches:
            before = DENSE_EPOCHS if self.name.method == "magnitude" else 0
            self.batches = self.images.epoch(self.name.seed, before + epoch)
        self.take(*self.batches[place])
        self.steps += 1
        if not self.steps % (self.an_epoch * EVERY) or not self.left:
            self.reached[epoch + 1] = self.right()

    @property
    def left(self) -> int:
        """Steps that are not queued yet."""
        return self.name.epochs * self.an_epoch - self.steps

    @torch.no_grad()
    def right(self) -> Tensor:
        """How many test images are classified right; the device is not waited for."""
        self.model.eval()
        on = zip(self.images.test.x.split(1000), self.images.test.y.split(1000), strict=True)
        found = [(self.forward(in_own_order(x)).argmax(1) == y).sum() for x, y in on]
        self.model.train()
        return torch.stack(found).sum()

    def __str__(self) -> str:
        return f"{self.name}: epoch {self.steps // self.an_epoch}"

    def state(self) -> dict[str, Any]:
        """All that it takes to go on; accuracies are in % from now on."""
        for epoch, right in self.reached.items():
            if isinstance(right, Tensor):
                self.reached[epoch] = round(100 * int(right) / len(self.images.test.y), 2)
        held = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"steps": self.steps, "reached": self.reached, **held}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        masks = {name: each for name, each in state["model"].items() if name.endswith(".mask")}
        if masks:
            self.keep({name.removesuffix(".mask"): Topology.from_mask(mask.cpu()) for name, mask in masks.items()})
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.reached = state["steps"], dict(state["reached"])


class Contest(overlapping.Contest):
    """All runs, and their states in one file."""

    lot = STEPS

    def __init__(self, names: list[Name], images: Images, out: Path, *, autocast: bool) -> None:
        super().__init__(images.device, out)
        self.names, self.images, self.autocast = names, images, autocast
        held = torch.load(out / "states.pt", map_location="cpu") if (out / "states.pt").exists() else {}
        self.states = {Name(*name): state for name, state in held.get("states", [])}
        self.seconds, self.steps = held.get("seconds", 0.0), held.get("steps", 0)
        self.begun = held.get("begun") or f"{datetime.now(UTC):%Y-%m-%dT%H:%M}"

    def ended(self, name: Name) -> bool:
        """Whether it has had all of its epochs."""
        return name in self.states and name.epochs in self.states[name]["reached"]

    def next(self) -> Run | None:
        """The first that waits and may begin."""
        live = {run.name for run in self.live}
        for name in self.names:
            may = name.method != "magnitude" or self.ended(name.dense)
            if may and name not in live and not self.ended(name):
                run = Run(name, self.images, autocast=self.autocast)
                begun = name in self.states
                run.load(self.states[name]) if begun else run.choose(self.states.get(name.dense))
                return run
        return None

    def over(self, run: Run) -> None:
        """Only its accuracies are wanted from now on, and weights only of those whose magnitudes are."""
        state = run.state()
        self.states[run.name] = state if run.name.method == "dense" else {"reached": state["reached"]}
        print(*run.name, state["reached"][run.name.epochs], flush=True)

    def save(self) -> None:
        """All states in one file, and the table in another."""
        self.states |= {run.name: run.state() for run in self.live}
        held = {"states": [(tuple(name), state) for name, state in self.states.items()]}
        held |= {"seconds": self.seconds, "steps": self.steps, "begun": self.begun}
        write_atomic(self.out / "states.pt", partial(torch.save, held))
        write_atomic(self.out / "results.json", (json.dumps(self.results(), indent=1) + "\n").encode())

    def results(self) -> dict[str, Any]:
        """What was reached, and how long it took."""
        device, an_epoch = self.images.device, -(-len(self.images.train.x) // BATCH)
        listed = dict.fromkeys((*self.names, *self.states))  # those of an earlier call, too
        return {
            "begun": self.begun,
            "device": device_name(device),
            "precision": "autocast" if self.autocast else "float32",
            "seconds_an_epoch": round(self.seconds * an_epoch / max(1, self.steps), 3),
            "seconds": round(self.seconds),
            "runs": [row(name, self.states[name]["reached"]) for name in listed if name in self.states],
        }


def row(name: Name, reached: dict[int, float]) -> dict[str, Any]:
    """What a run has reached at the last of its test accuracies, after `epochs` of `of`, beside what was published."""
    published = PUBLISHED[name.method][DENSITIES.index(name.density)] if name.method in PUBLISHED else None
    return {
        **name._asdict(),
        "density": round(name.density, 4),
        "epochs": max(reached, default=0),
        "of": name.epochs,
        "final": reached.get(name.epochs),
        "published": published,
        "test_accuracy_percent": reached,
    }


def named(seeds: int) -> list[Name]:
    """All runs, what is wanted most first."""
    sparse = [(method, density) for density in DENSITIES for method in PUBLISHED]
    return [Name(*each, seed) for seed in range(seeds) for each in (("dense", 1.0), *sparse)]


def picked(runs: str, seeds: int) -> list[Name]:
    """Those of all runs that are asked for, in that order: methods, with or without a density in percent, as in `dense,magnitude,random:10`."""
    found, every = dict[Name, None](), named(seeds)
    for method, _, percent in (each.partition(":") for each in runs.split(",")):
        asked = [each for each in every if each.method == method and percent in {"", f"{100 * each.density:.0f}"}]
        if not asked:
            raise SystemExit(f"no run is called {method}:{percent}; there are {', '.join(map(str, every))}")
        found |= dict.fromkeys(asked)
    return list(found)


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/resnet-cifar"), help="where runs are kept, and go on from"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", help="only these, in this order: dense,magnitude,random:10 (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--together", type=int, help="runs at a time (default: 8 on a GPU, else 1)")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after so many; the same command goes on"
    )
    parser.add_argument("--autocast", action="store_true", help="products in bfloat16")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write to records/resnet-cifar.json, where those begun at other times stay",
    )
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.backends.cudnn.benchmark = True
    names = picked(given.runs, given.seeds) if given.runs else named(given.seeds)
    contest = Contest(names, examples(device), given.out, autocast=given.autocast)
    contest.go(given.together or (8 if device.type == "cuda" else 1), given.seconds)
    found = contest.results()
    if given.record:
        others = [each for each in json.loads(RECORD.read_text(encoding="utf-8")) if each["begun"] != found["begun"]]
        RECORD.write_text(json.dumps([*others, found], indent=1) + "\n", encoding="utf-8")
    print(f"{found['seconds_an_epoch']} s an epoch, all of {found['seconds']} s divided among all epochs of all runs")
    for each in found["runs"]:
        print(json.dumps({name: value for name, value in each.items() if name != "test_accuracy_percent"}))


if __name__ == "__main__":
    main()
