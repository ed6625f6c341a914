"""Peak memory of pruning by SNIP before training, as the dense size grows and what is kept does not, and beside the dense path.

Each network in a fresh process of `never_dense.py`: MLPs of 100 million to 6.4 billion weights, of which 2**21 are kept; with memory
for their weights up to 1.6 billion. Then those that `CASES` names. Writes records/never-dense.json, a case as soon as it is done, and
the picture of the sizes; cases that the record has are not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fresh import told_by

from pollard.report.plot import Figure, Series, svg

HERE = Path(__file__).parent
RECORD = HERE / "records" / "never-dense.json"
PICTURE = HERE.parent / "docs" / "images" / "never-dense.svg"
KEPT, CLASSES = 2**21, 10
HIDDEN, DENSE_UP_TO = (8192, 16384, 32768, 65536), 32768
CASES = {
    "1.6 billion at 0.5 %": "--widths 16384-32768-32768-10 --density 0.005 --steps 3",
    "2 billion by GraSP": "--widths 16384-37376-37376-10 --density 0.001 --criterion grasp --steps 3",
    "100 million by SynFlow, 100 rounds": "--widths 4096-8192-8192-10 --density 0.001 --criterion synflow --steps 3",
    "2 billion by SynFlow, 100 rounds": "--widths 16384-37376-37376-10 --density 0.001 --criterion synflow --steps 3",
    "6.4 billion at 0.1 %": "--widths 32768-65536-65536-10 --density 0.001 --steps 100 --threads 2",
    "21.5 billion at 0.1 %": "--widths 32768-131072-131072-10 --density 0.001 --steps 100 --threads 2",
}


def of_size(hidden: int, *, dense: bool) -> str:
    """The options of a network of two hidden layers of which KEPT weights are kept."""
    weights = hidden * hidden // 2 + hidden * hidden + CLASSES * hidden
    shape = f"--widths {hidden // 2}-{hidden}-{hidden}-{CLASSES} --density {KEPT / weights!r} --steps 1"
    return shape + (" --dense" if dense else "")


def measured(options: str) -> dict[str, Any]:
    """One network in a process of its own."""
    told: dict[str, Any] = told_by("never_dense.py", *options.split())
    peak, took = told["pruned"]["peak"] / 1e6, told["pruned"]["seconds"]
    print(f"{options}: {peak:,.0f} MB, {took:,.0f} s", flush=True)
    return told


def picture(records: dict[str, dict[str, Any]]) -> Figure:
    """The peaks while deciding, over the weights of the dense network."""
    lines: dict[str, list[tuple[float, float]]] = {"weights without memory": [], "dense weights": []}
    for hidden in HIDDEN:
        for name, dense in (("weights without memory", False), ("dense weights", True)):
            told = records.get(of_size(hidden, dense=dense))
            if told:
                lines[name].append((told["weights"] / 1e6, told["pruned"]["peak"] / 1e9))
    return Figure(
        title="Peak memory of pruning by SNIP before training",
        subtitle=f"MLPs of two hidden layers, {KEPT:,} weights kept, batch 128",
        x_label="million weights of the dense network",
        y_label="GB above what importing takes",
        series=tuple(Series(name, tuple(points)) for name, points in lines.items() if points),
    )


def main() -> None:
    """Measure what is missing, write the record and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="measure only cases whose options hold this text")
    given = parser.parse_args()
    wanted = [of_size(hidden, dense=False) for hidden in HIDDEN]
    wanted += [of_size(hidden, dense=True) for hidden in HIDDEN if hidden <= DENSE_UP_TO]
    records: dict[str, Any] = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    for options in [*wanted, *CASES.values()]:
        if options not in records and given.only in options:
            records[options] = measured(options)
            RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    PICTURE.write_text(svg(picture(records)), encoding="utf-8")


if __name__ == "__main__":
    main()
