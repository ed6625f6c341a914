"""Tables of what pruning does to the loss, and of how long that matters."""

from __future__ import annotations

from statistics import mean

from records import load, points

from pollard.report.accuracy import labels
from pollard.report.comparison import after, differences
from pollard.report.render import markdown
from pollard.report.significance import half_width

MASKS, VALUES = ("magnitude", "SparseGPT", "random"), ("refitted", "its own", "initial", "redrawn")
EPOCHS = (0, 1, 3, 10)


def crossed() -> str:
    """How far each kind of values is above the trained ones on the same mask, by epochs of training that follow."""
    found = points("values")
    leads = [
        {
            (one.label, one.density): one.told
            for mask in MASKS
            for one in differences(after(found, epochs), f"{mask}, trained")
            if one.label.startswith(mask)
        }
        for epochs in EPOCHS
    ]
    rows = [
        [mask, values, f"{100 * density:g} %", *(lead[f"{mask}, {values}", density] for lead in leads)]
        for mask in MASKS
        for values in VALUES
        for density in (0.1, 0.02)
        if f"{mask}, {values}" in labels(found)
    ]
    seeds = len({point["seed"] for point in found})
    head = [f"mask, n = {seeds}", "values", "kept", "right after pruning", "1 epoch", "3 epochs", "10 epochs"]
    return markdown(head, rows, left=3)


def predicted() -> str:
    """What pruning did to the loss and what was predicted of it, by how much was pruned."""
    found = load("predicted-loss.json")
    shares = sorted({row["pruned"] for row in found})
    rows = []
    for share in shares:
        told = [f"{100 * share:g} %"]
        for criterion in ("taylor", "magnitude"):
            own = [row for row in found if (row["criterion"], row["pruned"]) == (criterion, share)]
            told += [_told([row[name] for row in own]) for name in ("true", "first_order", "second_order")]
        rows.append(told)
    columns = [
        f"{name}: {each}" for name in ("Taylor", "magnitude") for each in ("true rise", "first order", "second order")
    ]
    return markdown([f"pruned, n = {len({row['seed'] for row in found})}", *columns], rows)


def _told(values: list[float]) -> str:
    half = half_width(values)
    return f"{mean(values):.4f}" + ("" if half is None else f" ± {half:.4f}")
