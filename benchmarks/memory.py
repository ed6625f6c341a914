"""Peak memory of training MLP 16384-16384-16384-10 at 1 % density with Adam, whose dense form takes 8.6 GB.

Run in a fresh process. Prints JSON: bytes of values, indices, gradients and moments as they are held, of activations as
they are counted below, the peak of resident memory above what it was after importing, and their ratio. Torch imports its
optimizers' machinery, and Pollard its compiler, at the first step: a step of a network of 8 neurons makes them do so before
the baseline is read. With --limit the address space is limited, so that not even one dense weight could be allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
from dataclasses import asdict
from itertools import pairwise

import torch
from torch import nn

import pollard
from pollard.report.measure import module_bytes, peak_rss_bytes, rss_bytes

WIDTHS = (16384, 16384, 16384, 10)
BATCH = 128


def network(widths: tuple[int, ...], density: float) -> nn.Sequential:
    """A network of ReLU layers, born sparse."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [pollard.nn.SparseLinear.random(width, following, density, generator=generator), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def activation_bytes() -> int:
    """Inputs, each layer's output before and after ReLU, and the two gradients alive at once in backward; fp32."""
    inputs, *outputs, logits = WIDTHS
    return 4 * BATCH * (inputs + 2 * sum(outputs) + logits + 2 * max(WIDTHS))


def train(widths: tuple[int, ...], density: float, steps: int) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """Some steps on random examples: the network, its optimizer, the losses."""
    model = network(widths, density)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # as pollard.training: no temporaries of every moment
    x, y = torch.randn(BATCH, widths[0]), torch.randint(0, widths[-1], (BATCH,))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, optimizer, losses


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
    parser.add_argument("--limit", type=int, help="MiB of address space to leave beyond what importing maps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    train((8, 8, 8), 0.5, steps=1)
    baseline = rss_bytes()
    dense_weight = limit_address_space(given.limit << 20) if given.limit else "not tried"
    model, optimizer, losses = train(WIDTHS, given.density, given.steps)
    held = module_bytes(model, optimizer)
    counted = held.total + activation_bytes()
    peak = peak_rss_bytes() - baseline
    told = {
        "dense_weight": dense_weight,
        "bytes": asdict(held),
        "activations": activation_bytes(),
        "counted": counted,
        "peak_above_baseline": peak,
        "ratio": round(peak / counted, 3),
        "dense_form": 4 * 4 * sum(a * b for a, b in pairwise(WIDTHS)),
        "losses": losses,
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
