"""How far each method prunes VGG-16 before it empties a layer: at initialisation, scores alone, nothing is trained.

python benchmarks/critical_compression.py [--network vgg-16] [--seeds 0] [--methods synflow snip ...]

Writes records/critical-compression.json. Compressions are powers of ten, in steps of a twelfth, as Tanaka et al.'s code tries them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pollard
from pollard import data
from pollard.errors import LayerCollapse
from pollard.networks import CIFAR, build
from pollard.pruning.plan import Plan
from pollard.recipes.models import initial_network

RECORD = Path(__file__).parent / "records" / "critical-compression.json"
STEPS = 12
PER_CLASS = 10
# Tanaka et al.'s code, figures.ipynb: the same on CIFAR-100. Random there is random scores over the whole network, as here.
PUBLISHED = {"magnitude": 2.75, "random": 3.33, "snip": 3.58, "grasp": 3.58, "synflow": 5.92}


def examples(seed: int) -> tuple[Tensor, Tensor]:
    """Ten training images of each class."""
    loaded = data.load("cifar-10")
    order = torch.randperm(len(loaded.train_y), generator=torch.Generator().manual_seed(seed))
    labels = loaded.train_y[order]
    chosen = torch.cat([order[labels == label][:PER_CLASS] for label in range(loaded.classes)])
    return loaded.train_x[chosen].unflatten(1, loaded.shape), loaded.train_y[chosen]


def pruned(network: str, method: str, log_compression: float, seed: int, batch: tuple[Tensor, Tensor]) -> Plan:
    """What `method` keeps at initialisation."""
    model = initial_network(network, CIFAR, "kaiming", torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapse)
        return pollard.prune(
            model,
            method,
            density=10**-log_compression,
            batch=batch,
            allocation="global",
            generator=torch.Generator().manual_seed(seed),
        )


def critical(network: str, method: str, seed: int, highest: int) -> int:
    """The highest power, in twelfths, up to which no layer is empty: what is published first, then by halving.

    A layer that is empty stays so. A hundred rounds of SynFlow take minutes, and are tried as seldom as can be.
    """
    batch, published = examples(seed), round(STEPS * PUBLISHED[method])
    low, high = 0, highest + 1
    while high - low > 1:
        middle = published if low < published < high else (low + high) // 2
        started = time.perf_counter()
        empty = pruned(network, method, middle / STEPS, seed, batch).collapsed
        low, high = (low, middle) if empty else (middle, high)
        seconds = time.perf_counter() - started
        sys.stdout.write(f"{method}, seed {seed}, 10^{middle / STEPS:.2f}: {len(empty)} empty, {seconds:.0f} s\n")
        sys.stdout.flush()
    return low


def main() -> None:
    """Find the powers that were asked for, beside those that the record has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vgg-16")
    parser.add_argument("--methods", nargs="+", default=list(PUBLISHED), choices=PUBLISHED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    weights = [each.numel() for each in build(asked.network, CIFAR).parameters() if each.dim() > 1]
    bound = math.floor(STEPS * math.log10(sum(weights) / len(weights)))
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else []
    for seed in asked.seeds:
        for method in asked.methods:
            own = {"network": asked.network, "method": method, "seed": seed}
            rows = [row for row in rows if own.items() - row.items()]
            found = critical(asked.network, method, seed, bound)
            told = {"log10_compression": round(found / STEPS, 2), "bound": round(bound / STEPS, 2)}
            rows.append({**own, **told, "published": PUBLISHED[method] if asked.network == "vgg-16" else None})
            RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
