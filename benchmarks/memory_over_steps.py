"""Peak memory of every step while the topology moves: RigL with Adam on compressed storage, and as it is usually done.

Each network in a fresh process of `memory.py`: MLP 16384-16384-16384-10 at 1 % density, whose dense form does not matter
here, and MLP 8192-8192-8192-10, whose masked-dense form fits. Updates come every 4 steps. Writes
records/moving-memory.json and the picture of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fresh import told_by

from pollard.report.plot import Figure, Series, svg

HERE = Path(__file__).parent
RECORD = HERE / "records" / "moving-memory.json"
PICTURE = HERE.parent / "docs" / "images" / "moving-memory.svg"
LARGE, SMALL = "16384-16384-16384-10", "8192-8192-8192-10"
CASES = (
    (LARGE, "compressed", "rigl:4"),
    (LARGE, "compressed", ""),
    (SMALL, "compressed", "rigl:4"),
    (SMALL, "masked", "rigl:4"),
)


def measure(network: str, storage: str, moving: str, steps: int) -> dict[str, Any]:
    """One network in a process of its own."""
    options = ["--widths", network, "--storage", storage, "--steps", str(steps)]
    told: dict[str, Any] = told_by("memory.py", *options, *(("--moving", moving) if moving else ()))
    print(
        f"{network} {storage} {moving or 'static'}: {told['peak_above_baseline'] / 1e6:,.0f} MB, {told['ratio']}x",
        flush=True,
    )
    return told


def picture(records: list[dict[str, Any]]) -> Figure:
    """The peaks of the network of which both forms fit."""
    drawn = []
    for record in records:
        if record["network"] == SMALL:
            points = tuple((float(step), peak / 1e6) for step, peak in enumerate(record["peaks_of_steps"], start=1))
            drawn.append(
                Series("dense weights under a mask" if record["storage"] == "masked" else "compressed", points)
            )
    return Figure(
        title="Peak memory of each training step, RigL with Adam",
        subtitle=f"MLP {SMALL}, 1 % of the weights, batch 128; an update of the topology every 4 steps",
        x_label="step",
        y_label="MB above what importing takes",
        series=tuple(drawn),
    )


def main() -> None:
    """Measure every case, write the record and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    given = parser.parse_args()
    records = [measure(*case, given.steps) for case in CASES]
    RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    PICTURE.write_text(svg(picture(records)), encoding="utf-8")


if __name__ == "__main__":
    main()
