"""Writes the figures of the README from the records, so that no number in it is typed by hand; --check only compares."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RECORDS = HERE / "records"
Row = list[str]


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def load(name: str) -> Any:
    """The content of a record."""
    return json.loads((RECORDS / name).read_text(encoding="utf-8"))


def speed() -> str:
    """Ratios to dense torch of single layers and of whole training steps, on one thread."""
    found: dict[tuple[str, str, str], dict[float, str]] = {}
    for record in load("layers_1_threads.json") + load("networks_1_threads.json"):
        if record["op"] in ("input_grad", "value_grad"):
            continue  # the parts of a backward pass: in the record, too many for a page
        shape = "-".join(map(str, record["network"])) or "x".join(map(str, record["shape"]))
        op = f"step, {record['optimizer']}" if record["network"] else record["op"]
        found.setdefault((op, shape, record["pattern"]), {})[record["density"]] = f"{record['speedup']:.1f}x"
    densities = sorted({density for each in found.values() for density in each}, reverse=True)
    head = ["operation", "out x in x batch, or network", "pattern", *(f"{100 * d:g} % kept" for d in densities)]
    return table(head, [[*key, *(each.get(d, "") for d in densities)] for key, each in found.items()])


def memory() -> str:
    """What training a network holds whose dense form takes gigabytes."""
    told = load("memory.json")
    held = told["bytes"]
    sizes = [held["values"] + held["dense"], held["indices"], held["gradients"], held["optimizer"]]
    sizes += [told["activations"], told["peak_above_baseline"], told["dense_form"]]
    head = ["network", "density", "weights and biases", "indices", "gradients", "Adam's moments", "activations"]
    row = ["16384-16384-16384-10, batch 128", "1 %", *(f"{size / 1e6:,.0f} MB" for size in sizes)]
    return table([*head, "peak above baseline", "dense form, without activations"], [row])


def snip() -> str:
    """Test errors of SNIP beside the published ones."""
    rows = [
        [
            f"{100 * row['density']:.0f} %",
            f"{row['score_batch']:,} images",
            f"{row['mean']:.2f} ± {row['standard_deviation']:.2f}",
            f"{row['published']}",
        ]
        for row in load("snip-mnist.json")
    ]
    return table(["density", "scored on", "test error, % (3 seeds)", "published, %"], rows)


def filled(text: str) -> str:
    """`text` with each block of figures made anew."""
    for name, make in (("speed", speed), ("memory", memory), ("snip", snip)):
        block = f"<!-- figures:{name} -->\n{make()}<!-- /figures -->"
        text = re.sub(
            rf"<!-- figures:{name} -->.*?<!-- /figures -->", lambda _, block=block: block, text, flags=re.DOTALL
        )
    return text


def main() -> int:
    """Write the README, or with --check say whether it is what the records say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if something would change")
    given = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    if given.check:
        return int(filled(text) != text)
    README.write_text(filled(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
