"""SET's own problems, beside what its authors published."""

from __future__ import annotations

from typing import Any

from records import load

from pollard.report.render import markdown


def anchor() -> str:
    """SET's own small problem, beside the published accuracies."""
    rows = [
        [
            f"{row['method']}, {row['form']}",
            f"{row['mean']:.2f} ± {row['standard_deviation']:.2f}",
            f"{row['published']:.2f} ± {row['published_standard_deviation']:.2f}" if row["form"] == "tutorial" else "",
            f"{row['mean_of_last_20']:.2f}",
            f"{row['train_accuracy_percent']:.1f}",
            f"{100 * row['explored_rate']:.0f} %",
        ]
        for row in load("set-anchor.json")
    ]
    accuracies = ["test accuracy, %", "published, %", "mean of the last 20 epochs, %", "training accuracy, %"]
    return markdown(["", *accuracies, "weights ever kept"], rows)


def network_of_set() -> str:
    """SET's own network on CIFAR-10: the mean of the last 20 of so many epochs, in brackets that of the published run."""
    found = load("set-cifar.json")
    reached = sorted({int(epochs) for row in found for epochs in row["after"]})
    rows = [
        [
            row["method"],
            device(row),
            str(len(row["epochs"])),
            *(told(row["after"].get(str(epochs))) for epochs in reached),
            f"{row['published_best_of_1000']:.2f}",
        ]
        for row in found
    ]
    head = [
        "%, published in brackets",
        *("on", "seeds"),
        *(f"epochs {epochs - 19} to {epochs:,}" for epochs in reached),
        "published, best of 1,000",
    ]
    return markdown(head, rows, left=2)


def device(row: dict[str, Any]) -> str:
    """What a row was run on, and in which precision where that is not float32."""
    name = row["device"].replace("cpu", "CPU").removeprefix("NVIDIA ")
    return name if row["precision"] == "float32" else f"{name}, {row['precision']}"


def told(cell: dict[str, Any] | None) -> str:
    """Over seeds, with the deviation where there are several; nothing where no run went so far."""
    if cell is None:
        return ""
    deviation = "" if cell["deviation"] is None else f" ± {cell['deviation']:.1f}"
    return f"{cell['mean']:.1f}{deviation} ({cell['published']:.1f})"
