"""Figures of convolutions: layers, whole steps and memory beside dense torch, on each CPU that was measured; a network beside published figures."""

from __future__ import annotations

from typing import Any

from records import load

from pollard.report.render import markdown

Times = dict[str, tuple[float, float]]  # milliseconds of dense torch and of ours, by pass
METHODS = {"dense": "dense", "synflow": "SynFlow, one round", "grasp": "GraSP", "snip": "SNIP", "random": "random"}
INSTRUCTIONS = {"avx2": "AVX2", "avx512": "AVX-512"}


def convolutions() -> str:
    """How many times as fast as dense layers of convolutional networks are: each pass, and all three."""
    found: dict[tuple[str, ...], dict[str, Times]] = {}
    for record in _single("convolutions.json"):
        cpu, layer = _cpu(record), f"{record['channels']} to {record['out']}, {record['side']} x {record['side']}"
        if "bare" in record:
            # Kernels that read and write images, and compute next to nothing.
            found.setdefault((layer, "a single weight", ""), {})[cpu] = _times(record, "bare")
        found.setdefault((layer, record["pattern"], _percent(record["density"])), {})[cpu] = _times(record, "ms")
    cpus = sorted({cpu for each in found.values() for cpu in each})
    head = ["channels, images", "pattern", "kept", *(f"{name}, {cpu}" for cpu in cpus for name in ("forward", "all"))]
    rows = [[*case, *(cell for cpu in cpus for cell in _as_fast(times.get(cpu)))] for case, times in found.items()]
    return markdown(head, rows, left=2)


def convolution_steps() -> str:
    """Training steps of convolutional networks beside dense torch's, as they are and compiled."""
    rows = []
    for record in _single("convolution-steps.json"):
        ms = record["ms"]
        best = min(time for way, time in ms.items() if way.startswith("dense"))
        for way in ms:
            if way.startswith("dense") or way.endswith("compiled"):
                continue
            pattern, density, *allocation = way.split()
            times = (ms[way], ms.get(f"{way} compiled"))
            told = [
                cell for time in times for cell in ([f"{time:.0f} ms", f"{best / time:.2f}x"] if time else ["", ""])
            ]
            case = [record["network"], _cpu(record), pattern, _percent(float(density)), *(allocation or ["erk"])]
            rows.append([*case, f"{best:.0f} ms", *told])
    head = ["network", "CPU", "pattern", "kept", "shared by", "best dense", "sparse", "as fast", "compiled", "as fast"]
    return markdown(head, rows, left=3)


def convolution_memory() -> str:
    """What training holds, and the peak of resident memory, as it is and without the holes of the heap."""
    rows = []
    for record in load("convolution-memory.json"):
        pattern, density = record["way"].split(":")
        kept = "" if pattern == "dense" else _percent(float(density))
        rows.append(
            [
                record["network"],
                pattern,
                kept,
                *(f"{record[name] / 1e6:.0f} MB" for name in ("held", "peak_in_use", "peak")),
            ]
        )
    return markdown(["network", "pattern", "kept", "held", "peak, in use", "peak, resident"], rows, left=2)


def _single(name: str) -> list[dict[str, Any]]:
    return [record for record in load(name) if record["threads"] == 1]


def _cpu(record: dict[str, Any]) -> str:
    return INSTRUCTIONS[record["machine"]["kernels"]]


def resnet() -> str:
    """ResNet-20 on CIFAR-10, by what chose its weights: the last test accuracy of each run that went farthest, and after which epoch that was."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in (run for contest in load("resnet-cifar.json") for run in contest["runs"] if run["epochs"]):
        published = "" if each["published"] is None else f"{each['published']:.2f}"
        case = METHODS.get(each["method"], each["method"]), _percent(each["density"]), published
        found.setdefault(case, []).append(each)
    rows = []
    for case, runs in found.items():
        epochs = max(each["epochs"] for each in runs)
        reached = [each["test_accuracy_percent"][str(epochs)] for each in runs if each["epochs"] == epochs]
        rows.append([*case, ", ".join(f"{one:.2f}" for one in reached), f"{epochs} of {runs[0]['of']}"])
    return markdown(["", "kept", "published, after 100 epochs, %", "here, %, each run", "after epochs"], rows)


def _percent(density: float) -> str:
    return f"{100 * density:g} %"


def _times(record: dict[str, Any], own: str) -> Times:
    return {name: (record["best_dense"][name][0], taken) for name, taken in record[own].items()}


def _as_fast(times: Times | None) -> list[str]:
    """How many times as fast as dense the forward pass is, and all passes are."""
    if times is None:
        return ["", ""]
    dense, own = map(sum, zip(*times.values(), strict=True))
    return [f"{slow / fast:.1f}x" for slow, fast in (times["forward"], (dense, own))]
