"""Top-KAST by random newcomers beside the published form, which stores the dense weights; a second a run.

64-300-10 on the digits, SGD at 0.1 with momentum 0.9, 450 steps of 100 examples, an update every 25, ten seeds. A fifth of the training
examples is held out, on which both are compared. Runs that are in records/top-kast-forms.json are not repeated.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pollard
from pollard import data
from pollard.data.datasets import DataSet

RECORD = Path(__file__).parent / "records" / "top-kast-forms.json"
DENSITIES, SEEDS = (0.05, 0.02), range(10)
STEPS, BATCH, EVERY, HELD_OUT = 450, 100, 25, 0.2


def accuracy(digits: DataSet, density: float, seed: int, *, dense_memory: bool) -> float:
    """Of held-out examples at the end, in percent."""
    torch.manual_seed(seed)
    order = torch.randperm(len(digits.train_x))
    held_out, left = order.split([round(HELD_OUT * len(order)), len(order) - round(HELD_OUT * len(order))])
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = pollard.top_kast(
        model, optimizer, density=density, steps=STEPS, every=EVERY, dense_memory=dense_memory, seed=seed
    )
    for _ in range(STEPS):
        batch = left[torch.randint(len(left), (BATCH,))]
        sparse.zero_grad()
        cross_entropy(model(digits.train_x[batch]), digits.train_y[batch]).backward()
        sparse.step()
    with torch.no_grad():
        right = model(digits.train_x[held_out]).argmax(1) == digits.train_y[held_out]
    return round(100 * float(right.float().mean()), 2)


def main() -> None:
    """Runs what is missing."""
    torch.set_num_threads(1)
    digits = data.load("digits")
    runs: list[dict[str, object]] = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for density, seed, dense_memory in product(DENSITIES, SEEDS, (False, True)):
        setting = {"density": density, "seed": seed, "dense_memory": dense_memory}
        if not any(setting.items() <= run.items() for run in runs):
            runs.append({**setting, "validation_accuracy": accuracy(digits, density, seed, dense_memory=dense_memory)})
            RECORD.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
