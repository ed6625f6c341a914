"""Tables of what budgets buy: all phases of a run in multiply-adds and seconds, and in what they end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from records import load, points

from pollard.report.accuracy import Spread, cells, labels, seeds_told
from pollard.report.render import markdown

Point = Mapping[str, Any]


def family(label: str) -> str:
    """The series that a label is of, but for how long it trains.

    >>> family("magnitude, one shot, 2 epochs"), family("dense, 1 epoch")
    ('magnitude, one shot', 'dense')
    """
    return re.sub(r", \d+ epochs?$", "", label)


def by_label(rows: Sequence[Point]) -> dict[str, list[Point]]:
    """Rows of a record or points of a study by their label, in the order of the labels."""
    return {label: [row for row in rows if row["label"] == label] for label in labels(rows)}


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
    rows, spreads = [], []
    for label, own in by_label(points("budgets")).items():
        spreads.append(Spread.of(point["test_accuracy"] for point in own))
        taken = [f"{mean(point['total_flops'] for point in own):.2f}", f"{mean(map(seconds, own)):.1f} s"]
        rows.append([family(label), str(own[0]["epochs"]), *taken, spreads[-1].percent()])
    return markdown(["", "epochs", "dense epochs, all phases", "seconds, all phases", seeds_told(spreads)], rows)


def curves() -> str:
    """Where each curve of the density ends, what it takes, and the accuracy."""
    rows, spreads = [], []
    for label, own in by_label(points("curves")).items():
        spreads.append(Spread.of(point["test_accuracy"] for point in own))
        until = own[0]["recipe"]["update_until"]
        taken = mean(point["training_flops"] for point in own)
        rows.append([label, f"{100 * until:g} %", f"{taken:.4f}", spreads[-1].percent()])
    return markdown(["", "falls until", "multiply-adds of a step, of dense", seeds_told(spreads)], rows)


def moments() -> str:
    """By when a network was pruned, what it took, and the accuracy from the weights of that moment and from the initial ones."""
    found = points("when")
    rows, spreads = [], cells(found)
    for label, own in by_label(found).items():
        if label.endswith("initial weights"):
            continue
        density = own[0]["density"]
        again = spreads.get((f"{label}, initial weights", density))
        told = spreads[label, density].percent(), "" if again is None else again.percent()
        rows.append([label, f"{mean(point['total_flops'] for point in own):.1f}", *told])
    head = [seeds_told(spreads.values()), "dense epochs, all phases", "from its weights", "from the initial weights"]
    return markdown(head, rows)


def basins() -> str:
    """The barrier between two trainings of the same start, by when it was pruned."""
    rows, spreads = [], []
    for label, own in by_label(load("connectivity.json")).items():
        ends = Spread.of(1 - (row["errors"][0] + row["errors"][-1]) / 2 for row in own)
        spreads.append(Spread.of(row["barrier"] for row in own))
        rows.append([label, f"{100 * own[0]['density']:g} %", ends.percent(), spreads[-1].percent()])
    return markdown([seeds_told(spreads), "kept", "test accuracy of the ends", "barrier, in points"], rows)
