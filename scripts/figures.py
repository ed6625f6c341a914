"""Writes the tables of README.md and docs/ from records and results, so that no number is typed by hand; --check only compares."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from budget_figures import basins, budgets, curves, moments
from choice_figures import bfloat16, equal_time, exchanges, few_samples, forms, newcomers, windows
from convolution_figures import convolution_memory, convolution_steps, convolutions, resnet
from gpu_figures import products_cuda, wide_cuda
from loss_figures import crossed, predicted
from memory_figures import checkpoints, memory, moving_memory, never_dense
from records import STUDIES, load, points
from set_figures import anchor, network_of_set

from pollard.recipes.study import Study
from pollard.report.accuracy import Spread, cells, grid, markdown_table, seeds_told
from pollard.report.collapse import collapse_table
from pollard.report.correlation import correlation_table
from pollard.report.render import markdown, texts
from pollard.report.significance import paired

ROOT = Path(__file__).parents[1]


def speed() -> str:
    """Ratios to the fastest of dense torch's ways, and in brackets of those in bfloat16, of single layers and of whole training steps, on one thread."""
    found: dict[tuple[str, str, str], dict[float, str]] = {}
    for record in load("layers_1_threads.json") + load("networks_1_threads.json"):
        if record["op"] in ("input_grad", "value_grad"):
            continue  # the parts of a backward pass: in the record, too many for a page
        shape = "-".join(map(str, record["network"])) or "x".join(map(str, record["shape"]))
        op = f"step, {record['optimizer']}" if record["network"] else record["op"]
        told = f"{record['speedup']:.1f}x ({record['bf16_speedup']:.1f}x)"
        found.setdefault((op, shape, record["pattern"]), {})[record["density"]] = told
    kept = sorted({density for each in found.values() for density in each}, reverse=True)
    head = [
        "operation",
        "out x in x batch, or network",
        "pattern",
        *(f"{100 * d:g} % kept" for d in kept),
    ]
    return markdown(head, [[*key, *(each.get(d, "") for d in kept)] for key, each in found.items()], left=3)


def snip(record: str) -> str:
    """Test errors of SNIP with their 95 % interval, beside the published ones."""
    rows = [
        [
            f"{100 * row['density']:.0f} %",
            f"{row['score_batch']:,} images",
            Spread.of(error / 100 for error in row["test_error_percent"]).percent(),
            f"{row['published']}",
        ]
        for row in load(record)
    ]
    seeds = seeds_told(Spread.of(row["test_error_percent"]) for row in load(record))
    return markdown(["density", "scored on", f"test error, %, {seeds}", "published, %"], rows)


def accuracies(study: str) -> str:
    """Test accuracies of a study, with published figures beside them."""
    return markdown_table(points(study), [asdict(one) for one in Study.read(STUDIES / f"{study}.toml").published])


def losses(study: str) -> str:
    """Training losses of a study: how well what was kept could be optimised."""
    found = points(study)
    told = {cell: f"{spread.mean:.3f}" for cell, spread in cells(found, "train_loss").items()}
    return markdown(*grid(found, told))


def right_after(study: str) -> str:
    """Accuracies right after pruning, before any more training, on training examples."""
    found = [{**point, "right after": point["aims"]["accuracy"]} for point in points(study) if point["aims"]]
    spreads = cells(found, "right after")
    (_, *columns), rows = grid(found, {cell: spread.percent() for cell, spread in spreads.items()})
    return markdown([seeds_told(spreads.values()), *columns], rows)


def collapse(study: str) -> str:
    """Down to which density no layer is empty."""
    return markdown(*texts(collapse_table(points(study))))


def correlations(study: str) -> str:
    """Which aim of pruning goes with the final accuracy."""
    return markdown(*texts(correlation_table(points(study))), left=2)


def grains(study: str) -> str:
    """Test accuracy by grain and density, how many times as fast as dense a step is, and what training holds at one density."""
    found = points(study)
    costs = {(row["label"], row["density"]): row for row in load("grains.json") if row["study"] == study}
    told = {cell: f"{spread.percent()}, {costs[cell]['speedup']:.1f}x" for cell, spread in cells(found).items()}
    columns, rows = grid(found, told)
    held = {label: row for (label, density), row in costs.items() if density in (0.1, 1.0)}
    return markdown(
        [*columns, "KB held at 10 %", "bytes a kept weight"],
        [
            [*row, f"{held[row[0]]['bytes'] / 1e3:,.0f}", f"{held[row[0]]['bytes'] / held[row[0]]['nnz']:.1f}"]
            for row in rows
        ],
    )


def critical() -> str:
    """How far VGG-16 can be pruned before a layer is empty, beside the published powers of ten."""
    names = {
        "magnitude": "magnitude",
        "random": "random, global",
        "snip": "SNIP",
        "grasp": "GraSP",
        "synflow": "SynFlow",
    }
    rows = [
        [names[row["method"]], f"{row['log10_compression']:.2f}", f"{row['published']:.2f}"]
        for row in load("critical-compression.json")
    ]
    return markdown(["", "10 to the power of, here", "published, CIFAR-100"], rows)


def explored(study: str) -> str:
    """How much of the dense weights a study's topologies have ever kept."""
    found = points(study)
    told = {cell: f"{100 * spread.mean:.0f} %" for cell, spread in cells(found, "explored_rate").items()}
    return markdown(*grid(found, told))


def updates() -> str:
    """What an update costs in ordinary steps, and throughput with one every 100 steps."""
    rows = [
        [
            row["method"],
            str(row["threads"]),
            f"{row['step_ms']:.1f} ms",
            f"{row['update_ms']:.0f} ms",
            f"{row['update_in_steps']:.1f}",
            f"{100 * row['throughput_at_100']:.1f} %",
        ]
        for row in load("updates.json")
    ]
    head = [
        "method",
        "threads",
        "an ordinary step",
        "an update",
        "in steps",
        "throughput of static, an update every 100 steps",
    ]
    return markdown(head, rows)


def wide() -> str:
    """A network of 600,000 neurons in each hidden layer."""
    told = load("wide.json")
    held = sum(told["bytes"].values())
    head = ["network", "neurons", "weights kept", "of", "held", "peak above baseline", "a step", "an update of SET"]
    row = [
        told["network"],
        f"{told['neurons']:,}",
        f"{told['weights_kept'] / 1e6:,.0f} million",
        f"{told['weights_of_the_dense_form'] / 1e9:,.0f} billion",
        *(f"{size / 1e6:,.0f} MB" for size in (held, told["peak_above_baseline"])),
        *(f"{seconds:.2f} s" for seconds in (told["seconds_a_step"], told["seconds_an_update"])),
    ]
    return markdown(head, [row])


def other_weights() -> str:
    """An LSTM and attention beside torch's own."""
    rows = [
        [record["case"], f"{100 * record['density']:g} %", str(record["threads"])]
        + [_beside_torch(record[op]) for op in ("forward", "forward+backward")]
        for record in load("other_weights.json")
    ]
    return markdown(["module", "kept", "threads", "forward", "forward+backward"], rows)


def _beside_torch(found: Mapping[str, Any]) -> str:
    way = found.get("best_dense", "as it is")
    return f"{found['speedup']:.1f}x" + ("" if way == "as it is" else f" ({way})")


MOMENTS = {
    "parameter_bytes": "weights and biases",
    "index_bytes": "indices",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activation_bytes": "activations, of 100 examples",
    "peak_bytes": "most at a time within a step",
}


def precisions(record: str) -> str:
    """Accuracy by method, density and precision, beside float32 seed by seed, and the bytes of the first setting by moment."""
    found: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for row in load(record)["rows"]:
        found.setdefault((row["method"], row["density"]), {})[row["precision"]] = row
    names, first = {"snip": "SNIP", "rigl": "RigL"}, next(iter(found.values()))
    rows = [
        [f"test accuracy, %: {names[method]}, {100 * density:g}% kept"]
        + [_beside_float32(each, own["float32"]) for each in own.values()]
        for (method, density), own in found.items()
    ]
    rows += [
        [f"KB at {100 * next(iter(found))[1]:g}% kept: {text}", *(f"{each[key] / 1e3:,.1f}" for each in first.values())]
        for key, text in MOMENTS.items()
        if key in first["float32"]
    ]
    seeds = len(first["float32"]["test_accuracy_percent"])
    return markdown([f"± 95 %, n = {seeds}; in brackets less float32", *first], rows)


def _beside_float32(row: Mapping[str, Any], wide: Mapping[str, Any]) -> str:
    own, other = ({seed: each / 100 for seed, each in enumerate(of["test_accuracy_percent"])} for of in (row, wide))
    told = Spread.of(own.values()).percent()
    return told if row is wide else f"{told} ({paired('', '', row['density'], own, other).told})"


def rounding() -> str:
    """A step of AdamW with stochastic rounding beside the same in float32."""
    rows = []
    for case, ways in load("rounding.json")["cases"].items():
        wide, narrow = ways["float32"], ways["bfloat16, stochastic"]
        held = [f"{wide['bytes_held']:.0f}", f"{narrow['bytes_held']:.0f}", f"{narrow['bytes_beyond']:.1f}"]
        rows.append([case, *held, f"{narrow['nanoseconds'] / wide['nanoseconds']:.0f}x"])
    head = [
        "parameters",
        "bytes held a number: float32",
        "bfloat16",
        "bytes more within a step",
        "its time over float32's",
    ]
    return markdown(head, rows)


SNIP = {"snip": "snip-mnist", "snip-lenet-5": "snip-lenet-5"}
AIMS = ("before", "after", "convolutions")
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": speed, "memory": memory, "snip": partial(snip, "snip-mnist.json")},
    "docs/folk-knowledge.md": {
        **{
            name: partial(accuracies, name)
            for name in ("mnist", "fashion", "before-mnist", "before-fashion", "scratch", "ablations", "collapse")
        },
        "scratch losses": partial(losses, "scratch"),
        "values": crossed,
        "budgets": budgets,
        "when": moments,
        "basins": basins,
        "collapse layers": partial(collapse, "collapse"),
        **{f"{name} aims": partial(correlations, f"aims-{name}") for name in AIMS},
        **{f"{name} accuracies": partial(accuracies, f"aims-{name}") for name in AIMS},
        **{name: partial(accuracies, name) for name in ("cifar-resnet-20", "cifar-vgg-16")},
        "resnet": resnet,
        "critical compression": critical,
    },
    "docs/how-to/checkpoints-that-do-not-fit.md": {"checkpoints": checkpoints},
    "docs/how-to/choose-a-pattern.md": {
        **{name: partial(grains, name) for name in ("grain-linear", "grain-convolutions")},
        **{name: partial(equal_time, name) for name in ("grain-time", "grain-time-convolutions")},
        "pairs": partial(bfloat16, "bfloat16_layers_1_threads.json", "encoder-zen5.json"),
        "tiles": partial(bfloat16, "bfloat16-amx.json", "encoder-amx.json"),
        "few samples": few_samples,
    },
    "docs/how-to/convolutions.md": {
        "convolutions": convolutions,
        "convolution steps": convolution_steps,
        "convolution memory": convolution_memory,
    },
    "docs/how-to/on-a-gpu.md": {"products cuda": products_cuda, "wide cuda": wide_cuda},
    "docs/how-to/never-dense.md": {
        "never dense": never_dense,
        "never dense accuracies": partial(accuracies, "never-dense"),
    },
    "docs/how-to/other-weights.md": {"other weights": other_weights},
    "docs/how-to/own-training-loop.md": {
        "precisions": partial(precisions, "training-precisions.json"),
        "transformer": partial(precisions, "transformer-precisions.json"),
        "rounding": rounding,
    },
    "docs/methods/acdc.md": {"alternating": partial(accuracies, "alternating")},
    "docs/methods/alps.md": {
        "inputs right after": partial(right_after, "inputs-after"),
        "inputs trained": partial(accuracies, "inputs-after"),
    },
    "docs/how-to/sparse-training.md": {"newcomers": newcomers},
    "docs/methods/gmp.md": {"curves": curves},
    "docs/methods/snip.md": {name: partial(snip, f"{record}.json") for name, record in SNIP.items()},
    "docs/methods/snfs.md": {"windows": windows},
    "docs/methods/taylor.md": {"predicted": predicted},
    "docs/methods/top-kast.md": {"forms": forms},
    "docs/moving-topologies.md": {
        "dynamic": partial(accuracies, "dynamic"),
        "dynamic explored": partial(explored, "dynamic"),
        "set-annealed": partial(accuracies, "set-annealed"),
        "exchange": exchanges,
        "anchor": anchor,
        "network of set": network_of_set,
        "updates": updates,
        "moving memory": moving_memory,
        "wide": wide,
    },
}


def filled(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """`text` with each block of figures made anew; a block that it does not have is a mistake."""
    for name, make in blocks.items():
        block = f"<!-- figures:{name} -->\n{make()}<!-- /figures -->"
        text, count = re.subn(
            rf"<!-- figures:{name} -->.*?<!-- /figures -->", lambda _, block=block: block, text, flags=re.DOTALL
        )
        if count != 1:
            sys.exit(f"{count} blocks of figures:{name}, expected one")
    return text


def main() -> int:
    """Write the pages, or with --check say which are not what the records say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if something would change")
    given = parser.parse_args()
    stale = 0
    for page, blocks in PAGES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = filled(text, blocks)
        if given.check and new != text:
            print(f"{page} is not what the records say: run python {Path(__file__).name}")
            stale = 1
        elif not given.check:
            path.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
