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
    """SET's own network on CIFAR-10, beside the published accuracies of the same epochs: of 200, and where there are as many of 1,000."""
    found = load("set-cifar.json")
    devices = len({(row["device"], row["precision"]) for row in found}) > 1
    whole = any(row["seeds_of_1000"] for row in found)
    rows = [
        [
            row["method"],
            *([device(row)] if devices else []),
            mean(row, "mean_of_181_to_200", 1),
            str(row["seeds"]),
            f"{row['published']:.1f}",
            *([mean(row, "mean_of_981_to_1000", 1), mean(row, "best_of_1000", 2)] if whole else []),
            *([str(row["seeds_of_1000"] or "")] if whole else []),
            f"{row['published_best_of_1000']:.2f}",
        ]
        for row in found
    ]
    head = [
        *(["", "on"] if devices else [""]),
        *("epochs 181 to 200, %", "seeds", "published, the same epochs, %"),
        *(["epochs 981 to 1,000, %", "best of 1,000, %", "seeds of 1,000"] if whole else []),
        "published, best of 1,000, %",
    ]
    return markdown(head, rows, left=2 if devices else 1)


def device(row: dict[str, Any]) -> str:
    """What a row was run on, and in which precision where that is not float32."""
    name = row["device"].replace("cpu", "CPU").removeprefix("NVIDIA ")
    return name if row["precision"] == "float32" else f"{name}, {row['precision']}"


def mean(row: dict[str, Any], name: str, digits: int) -> str:
    """Over seeds, with its deviation where there are several; nothing where there is none."""
    if row[name] is None:
        return ""
    deviation = row[f"deviation_of_{name}"]
    return f"{row[name]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
