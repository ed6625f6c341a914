"""Peak memory of training MLP 16384-16384-16384-10 at 1 % density with Adam, whose dense form takes 8.6 GB.

Run in a fresh process. Prints JSON: bytes of values, indices, gradients and moments as they are held, of activations as
they are counted below, the peak of resident memory above what it was after importing, and their ratio. Torch imports its
optimizers' machinery, and Pollard its compiler, at the first step: a step of a network of 8 neurons makes them do so before
the baseline is read. With --limit the address space is limited, so that not even one dense weight could be allocated.

With --method the topology moves, every --every steps, and the peak of each step is told: where an update is due, that of the
update. With --storage masked the same network trains as it is usually done, dense weights under a mask.
"""

from __future__ import annotations

import argparse
import json
import resource
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import nn

import pollard
from pollard.formats.topology import Topology
from pollard.report.measure import forget_peak_rss, module_bytes, peak_rss_bytes, rss_bytes
from pollard.training.methods import METHODS

WIDTHS = (16384, 16384, 16384, 10)
BATCH = 128


def network(widths: tuple[int, ...], density: float, storage: str) -> nn.Sequential:
    """A network of ReLU layers, born sparse, or dense and under a mask."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        if storage == "masked":
            topology = Topology.random((following, width), density, generator=generator)
            layers += [pollard.nn.MaskedLinear.from_dense(nn.Linear(width, following), topology), nn.ReLU()]
        else:
            layers += [pollard.nn.SparseLinear.random(width, following, density, generator=generator), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def activation_bytes(widths: tuple[int, ...]) -> int:
    """Inputs, each layer's output before and after ReLU, and the two gradients alive at once in backward; fp32."""
    inputs, *outputs, logits = widths
    return 4 * BATCH * (inputs + 2 * sum(outputs) + logits + 2 * max(widths))


@dataclass(frozen=True)
class Run:
    """A network trained on random examples: its losses, and the peak of resident memory in each step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float]
    peaks: list[int]
    updates: int


def train(widths: tuple[int, ...], density: float, steps: int, *, moving: str = "", storage: str = "compressed") -> Run:
    """Some steps; `moving` names a method and the steps between its updates, as in rigl:2."""
    model = network(widths, density, storage)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # as pollard.training: no temporaries of every moment
    name, _, every = moving.partition(":")
    method = METHODS[name or "static"](density, 10 * steps, **({"every": int(every)} if every else {}))
    sparsifier = pollard.Sparsifier(model, optimizer, method)
    x, y = torch.randn(BATCH, widths[0]), torch.randint(0, widths[-1], (BATCH,))
    losses, peaks = [], []
    for _ in range(steps):
        forget_peak_rss()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        sparsifier.step()
        losses.append(loss.item())
        peaks.append(peak_rss_bytes())
    return Run(model, optimizer, losses, peaks, sparsifier.updates)


def limit_address_space(spare: int) -> str:
    """Leave `spare` bytes of address space beyond what is mapped now, and try to allocate a dense weight in it."""
    with open("/proc/self/statm") as status:  # noqa: PTH123 - a file of the kernel, not of the user
        mapped = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + spare, mapped + spare))
    try:
        torch.empty(WIDTHS[0], WIDTHS[1])
    except RuntimeError:
        return "cannot be allocated"
    return "fits"


def main() -> None:
    """Train some steps and print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--widths", default="-".join(map(str, WIDTHS)), help="neurons per layer")
    parser.add_argument("--limit", type=int, help="MiB of address space to leave beyond what importing maps")
    parser.add_argument("--moving", default="", help="a method and the steps between its updates, as in rigl:2")
    parser.add_argument("--storage", default="compressed", choices=("compressed", "masked"))
    given = parser.parse_args()
    widths = tuple(map(int, given.widths.split("-")))
    torch.set_num_threads(1)
    train((8, 8, 8), 0.5, steps=4, moving=given.moving and given.moving.partition(":")[0] + ":2", storage=given.storage)
    baseline = rss_bytes()
    dense_weight = limit_address_space(given.limit << 20) if given.limit else "not tried"
    run = train(widths, given.density, given.steps, moving=given.moving, storage=given.storage)
    held = module_bytes(run.model, run.optimizer)
    counted = held.total + activation_bytes(widths)
    peak = max(run.peaks) - baseline
    told = {
        "network": given.widths,
        "density": given.density,
        "storage": given.storage,
        "moving": given.moving,
        "updates": run.updates,
        "dense_weight": dense_weight,
        "bytes": asdict(held),
        "activations": activation_bytes(widths),
        "counted": counted,
        "peak_above_baseline": peak,
        "ratio": round(peak / counted, 3),
        "dense_form": 4 * 4 * sum(a * b for a, b in pairwise(widths)),
        "peaks_of_steps": [each - baseline for each in run.peaks],
        "losses": run.losses,
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
