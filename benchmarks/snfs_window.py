"""How near the gradients of the last steps come to the mean of all steps, by which SNFS grows as published; some seconds.

64-256-10 on made-up data, 10 % kept, batches of 64, SGD with and without momentum, three seeds each, five updates a run, 50 steps
apart. At every update of the hidden layer: of the weights that the mean over all steps would grow, the share that each window grows too.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pollard

RECORD = Path(__file__).parent / "records" / "snfs-window.json"
WINDOWS = (1, 5, 10, 22, 29, 44)
SEEDS, MOMENTA = (0, 1, 2), (0.0, 0.9)
DECAY, EVERY, UPDATES, BATCH = 0.9, 50, 5, 64


def gradient(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Of the loss in all weights of the hidden layer, kept or not."""
    first, last = model[0].to_dense(), model[2].to_dense()
    return torch.autograd.grad(cross_entropy(last(first(x).relu()), y), first.weight)[0]


def largest(scores: Tensor, count: int) -> set[int]:
    """Where the highest are, ties by index."""
    return set(scores.flatten().argsort(descending=True, stable=True)[:count].tolist())


def same(seed: int, momentum: float) -> list[dict[int, float]]:
    """For each update of a run, by window, the share of the mean's newcomers."""
    torch.manual_seed(seed)
    x = torch.randn(1024, 64, dtype=torch.float64)
    y = (x @ torch.randn(64, 10, dtype=torch.float64)).argmax(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)
    steps = 2 * EVERY * UPDATES
    sparse = pollard.snfs(model, optimizer, density=0.1, steps=steps, every=EVERY, decay=DECAY, dense_memory=True)
    found, gradients = [], []
    for step in range(1, EVERY * UPDATES + 1):
        batch = torch.randint(len(x), (BATCH,))
        gradients.append(gradient(model, x[batch], y[batch]))
        mask, weight = model[0].topology.mask(), model[0].to_dense().weight.detach().abs()
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        sparse.step()
        if sparse.method.due(step):
            count = round(sparse.method.fraction(step) * int(mask.sum()))
            stay = list(largest(weight.masked_fill(~mask, -1), int(mask.sum()) - count))
            grown = {window: largest(_mean(gradients, window, stay), count) for window in (*WINDOWS, step)}
            found.append({window: len(grown[window] & grown[step]) / count for window in WINDOWS})
    return found


def _mean(gradients: list[Tensor], window: int, stay: list[int]) -> Tensor:
    total = sum(DECAY**age * each for age, each in enumerate(reversed(gradients[-window:])))
    scores = torch.as_tensor(total).abs().flatten()
    scores[stay] = -1
    return scores


def main() -> None:
    """Measures, keeps and prints."""
    torch.set_num_threads(1)
    found = [update for seed, momentum in product(SEEDS, MOMENTA) for update in same(seed, momentum)]
    rows = [
        {
            "window": window,
            "updates": len(found),
            "same_percent": round(100 * mean(each[window] for each in found), 2),
            "worst_percent": round(100 * min(each[window] for each in found), 2),
        }
        for window in WINDOWS
    ]
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
