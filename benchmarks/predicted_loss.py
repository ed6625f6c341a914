"""How well Taylor's expansion predicts what pruning does to the loss, to first and to second order, by how much is pruned.

python benchmarks/predicted_loss.py [--epochs 10] [--seeds 0 1 2 3 4]

LeNet-300-100 on MNIST, trained and then pruned by Taylor's scores and by magnitude, over all layers; losses of a thousand training
examples, before any more training. Writes records/predicted-loss.json and the picture of it; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pollard import data
from pollard.pruning import measure_aims, prune
from pollard.recipes import Recipe, run
from pollard.report.plot import Figure, Series, svg

HERE = Path(__file__).parent
RECORD = HERE / "records" / "predicted-loss.json"
PICTURE = HERE.parent / "docs" / "images" / "predicted-loss.svg"
CRITERIA = ("taylor", "magnitude")
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
SAMPLES = 1000


def measured(seed: int, epochs: int) -> list[dict[str, Any]]:
    """A row for each criterion and share of the network of one seed."""
    recipe = Recipe(data="mnist", model="lenet-300-100", method="dense", epochs=epochs, seed=seed)
    with TemporaryDirectory() as folder:
        model = run(recipe, Path(folder), progress=False).model()
    digits = data.load("mnist")
    chosen = torch.randperm(len(digits.train_y), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    batch = digits.train_x[chosen], digits.train_y[chosen]
    rows = []
    for criterion, share in product(CRITERIA, SHARES):
        plan = prune(model, criterion, density=1 - share, batch=batch, allocation="global")
        aims = measure_aims(model, plan, batch, samples=1)
        assert aims.loss_before is not None
        told = {
            "true": aims.loss - aims.loss_before,
            "first_order": aims.first_order,
            "second_order": aims.second_order,
        }
        rows.append({"criterion": criterion, "pruned": share, "seed": seed, "epochs": epochs, **told})
    return rows


def figure(rows: list[dict[str, Any]]) -> Figure:
    """The mean prediction over the mean change, of the plans of both criteria."""

    def predicted(criterion: str, order: str, share: float) -> float:
        own = [row for row in rows if (row["criterion"], row["pruned"]) == (criterion, share)]
        return 100 * mean(row[order] for row in own) / mean(row["true"] for row in own)

    series = [
        Series(
            f"{order.replace('_', ' ')}, {criterion}", tuple((100 * x, predicted(criterion, order, x)) for x in SHARES)
        )
        for criterion, order in product(CRITERIA, ("second_order", "first_order"))
    ]
    return Figure(
        title="How much of the rise of the loss is predicted",
        subtitle=f"LeNet-300-100 on MNIST, trained, then pruned by two criteria; {len({row['seed'] for row in rows})} seeds",
        x_label="weights pruned, %",
        y_label="predicted rise, % of the true one",
        series=tuple(series),
    )


def main() -> None:
    """Measure the seeds that the record does not have, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else []
    for seed in asked.seeds:
        if not any(row["seed"] == seed and row["epochs"] == asked.epochs for row in rows):
            rows += measured(seed, asked.epochs)
            RECORD.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    PICTURE.write_text(svg(figure(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
