"""Tables of what budgets buy: all phases of a run in multiply-adds and seconds, and in what they end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import mean
from typing import Any

from records import load, points

from pollard.report.accuracy import Spread, labels, seeds_told
from pollard.report.render import markdown

Point = Mapping[str, Any]


def family(label: str) -> str:
    """The series that a label is of, but for how long it trains.

    >>> family("magnitude, one shot, 2 epochs"), family("dense, 1 epoch")
    ('magnitude, one shot', 'dense')
    """
    return re.sub(r", \d+ epochs?$", "", label)


def seconds(point: Point) -> float:
    """Processor seconds of all phases of a run, of epochs and scores as they were timed in turns."""
    recipe, phases = point["recipe"], point["phases"]
    rows = {(row["label"], round(row["density"], 9)): row for row in load("budgets.json")}
    cycles, trained = recipe["cycles"], recipe["epochs"] - recipe["schedule_at"]
    own = [rows[point["method"], round(recipe["density"] ** (k / cycles), 9)] for k in range(1, cycles + 1)]
    before = sum(row["epoch_seconds"] for row in own[:-1]) * (recipe["score_at"] - recipe["schedule_at"])
    scored = cycles * own[-1]["score_seconds"]
    dense = phases["dense"] * rows["dense", 1.0]["epoch_seconds"]
    return float(dense + scored + before + trained * own[-1]["epoch_seconds"])


def budgets() -> str:
    """What each run took in all, and the accuracy that it reached."""
    found = points("budgets")
    rows, spreads = [], []
    for label in labels(found):
        own = [point for point in found if point["label"] == label]
        spreads.append(Spread.of(point["test_accuracy"] for point in own))
        taken = [f"{mean(point['total_flops'] for point in own):.2f}", f"{mean(map(seconds, own)):.1f} s"]
        rows.append([family(label), str(own[0]["epochs"]), *taken, spreads[-1].percent()])
    return markdown(["", "epochs", "dense epochs, all phases", "seconds, all phases", seeds_told(spreads)], rows)
