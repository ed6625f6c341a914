"""What comes late under Adam: one count of steps for all weights against counts of their own; a few seconds a run.

64-300-100-10 on the digits, 5 % kept, 400 steps of 64 examples under a cosine schedule, an update every 20. A fifth of the training
examples is held out: what ought to be the default is read off those, not off the test examples. Runs that are in records/newcomers.json are not repeated.
"""

from __future__ import annotations

import json
import statistics
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pollard
from pollard import data
from pollard.data.datasets import DataSet

RECORD = Path(__file__).parent / "records" / "newcomers.json"
METHODS = {"rigl": {}, "set": {"deviation": 0.0}}
RATES = (0.01, 0.003)
SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH, HELD_OUT = 400, 64, 0.2


def trained(digits: DataSet, method: str, rate: float, seed: int, *, own_steps: bool) -> dict[str, float]:
    """Accuracies and losses of one run."""
    torch.manual_seed(seed)
    order = torch.randperm(len(digits.train_x))
    held_out, left = order.split([round(HELD_OUT * len(order)), len(order) - round(HELD_OUT * len(order))])
    hidden = [nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    options = {"density": 0.05, "steps": STEPS, "every": 20, "own_steps": own_steps, **METHODS[method]}
    sparse = pollard.sparse_training(model, optimizer, method, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        batch = left[torch.randint(len(left), (BATCH,))]
        sparse.zero_grad()
        cross_entropy(model(digits.train_x[batch]), digits.train_y[batch]).backward()
        sparse.step()
        schedule.step()
    sets = {
        "validation": (digits.train_x[held_out], digits.train_y[held_out]),
        "test": (digits.test_x, digits.test_y),
        "train": (digits.train_x[left], digits.train_y[left]),
    }
    return {name: value for kind, (x, y) in sets.items() for name, value in measured(model, kind, x, y).items()}


def measured(model: nn.Module, kind: str, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy in percent and loss on one set of examples."""
    with torch.no_grad():
        output = model(x)
        right = float((output.argmax(1) == y).float().mean())
        return {f"{kind}_accuracy": round(100 * right, 2), f"{kind}_loss": round(float(cross_entropy(output, y)), 4)}


def table(runs: list[dict[str, object]]) -> str:
    """Mean and standard deviation over the seeds, a row a setting."""
    lines = []
    for method, rate, own_steps in product(METHODS, RATES, (False, True)):
        wanted = {"method": method, "rate": rate, "own_steps": own_steps}
        done = [run for run in runs if wanted.items() <= run.items()]
        told = [str(value) for value in wanted.values()]
        for figure, digits in (("validation_accuracy", 1), ("validation_loss", 3), ("test_accuracy", 1)):
            values = [float(str(run[figure])) for run in done]
            if len(values) > 1:
                told.append(f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}")
        lines.append(" | ".join(told))
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, and prints the table."""
    torch.set_num_threads(1)
    digits = data.load("digits")
    runs: list[dict[str, object]] = json.loads(RECORD.read_text()) if RECORD.exists() else []
    for seed, method, rate, own_steps in product(SEEDS, METHODS, RATES, (False, True)):
        setting = {"method": method, "rate": rate, "own_steps": own_steps, "seed": seed}
        if not any(setting.items() <= run.items() for run in runs):
            runs.append({**setting, **trained(digits, method, rate, seed, own_steps=own_steps)})
            RECORD.write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
