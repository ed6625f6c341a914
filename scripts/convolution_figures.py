"""Figures of benchmarks/convolutions.py: layers and whole steps beside the best of dense torch, on each CPU that was measured."""

from __future__ import annotations

from typing import Any

from records import load

from pollard.report.render import markdown

PASSES = ("forward", "input gradient", "value gradient")
INSTRUCTIONS = {"avx2": "AVX2", "avx512": "AVX-512"}


def convolutions() -> str:
    """How many times as fast as dense layers of convolutional networks are: each pass, and all three."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in _single("convolutions.json"):
        layer = f"{record['channels']} to {record['out']}, {record['side']} x {record['side']}"
        if "bare" in record:
            found.setdefault((layer, "a single weight", ""), {})[_cpu(record)] = _bare(record)
        found.setdefault((layer, record["pattern"], _percent(record["density"])), {})[_cpu(record)] = record
    cpus = sorted({cpu for each in found.values() for cpu in each})
    head = ["channels, images", "pattern", "kept", *(f"{name}, {cpu}" for cpu in cpus for name in ("forward", "all"))]
    rows = [[*case, *(cell for cpu in cpus for cell in _as_fast(records.get(cpu)))] for case, records in found.items()]
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


def _bare(record: dict[str, Any]) -> dict[str, Any]:
    """What `record` would be if its kernels read and wrote images, and computed next to nothing."""
    dense = {name: record["best_dense"][name][0] for name in PASSES}
    own = record["bare"]
    return {
        "speedup": {name: dense[name] / own[name] for name in PASSES},
        "speedup_of_all": sum(dense.values()) / sum(own.values()),
    }


def _single(name: str) -> list[dict[str, Any]]:
    return [record for record in load(name) if record["threads"] == 1]


def _cpu(record: dict[str, Any]) -> str:
    return INSTRUCTIONS[record["machine"]["kernels"]]


def _percent(density: float) -> str:
    return f"{100 * density:g} %"


def _as_fast(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["", ""]
    return [f"{each:.1f}x" for each in (record["speedup"]["forward"], record["speedup_of_all"])]
