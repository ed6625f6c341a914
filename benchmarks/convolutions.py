"""Sparse convolutions beside dense ones: the layers of ResNet-20 and VGG-16, and whole training steps of both.

Dense is given its best: torch's own layout and channels last, forward and each gradient apart, the faster of both in the same run.
Beside each pass stands what it takes where a single weight is kept: images read and written, hardly anything computed. No density goes below it.

python benchmarks/convolutions.py [--rounds 9] [--threads 1] [--batch 64] [--steps] [--record]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import pollard
from pollard.formats.topology import Topology
from pollard.kernels.convolutions.window import Window
from pollard.networks.building import build, usual_ends
from pollard.ops import convolution_operators as sparse
from pollard.report.machine import machine
from pollard.report.timing import interleaved

RECORDS = Path(__file__).parent / "records"
# Channels of the input and of the output, height and width: of each kind of layer that the networks have.
LAYERS = {
    "ResNet-20": ((16, 16, 32), (32, 32, 16), (64, 64, 8)),
    "VGG-16": ((64, 64, 32), (128, 128, 16), (256, 256, 8), (512, 512, 4), (512, 512, 2)),
}
CASES = (("unstructured", 0.1), ("unstructured", 0.05), ("v4", 0.4), ("v4", 0.1), ("v4", 0.05), ("k3x3", 0.1))
BARE = ("unstructured", 0.0)
# By ERK, small layers keep more of their weights, and those of few channels on large images are small: about twice the multiply-adds of the
# same density in every layer. The last is next to nothing: what a step takes beside the multiply-adds of its convolutions.
STEPS = (
    ("unstructured", 0.05, "erk"), ("v4", 0.05, "erk"), ("unstructured", 0.05, "uniform"), ("v4", 0.05, "uniform"),
    ("unstructured", 0.001, "uniform"),
)  # fmt: skip
WINDOW = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
PASSES = ("forward", "input gradient", "value gradient")


def dense_calls(x: Tensor, weight: Tensor, grad: Tensor) -> dict[str, dict[str, Callable[[], Any]]]:
    """Each pass by torch's own convolution, in both layouts."""
    found: dict[str, dict[str, Callable[[], Any]]] = {name: {} for name in PASSES}
    for layout, kind in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        own, w, upstream = (each.contiguous(memory_format=kind) for each in (x, weight, grad))
        back = partial(
            torch.ops.aten.convolution_backward, upstream, own, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        )
        found["forward"][layout] = partial(functional.conv2d, own, w, None, 1, 1)
        found["input gradient"][layout] = partial(back, [True, False, False])
        found["value gradient"][layout] = partial(back, [False, True, False])
    return found


def sparse_calls(x: Tensor, grad: Tensor, pattern: str, density: float) -> dict[str, Callable[[], Any]]:
    """Each pass by kernels, of a random topology."""
    out, channels = grad.shape[1], x.shape[1]
    kept = max(density, 1 / (9 * channels * out))
    topology = Topology.random((out, 9 * channels), kept, pattern, torch.Generator().manual_seed(0))
    values = torch.randn(topology.nnz)
    return {
        "forward": partial(sparse.forward, x, values, topology, None, WINDOW),
        "input gradient": partial(sparse.input_grad, grad, values, topology, WINDOW, tuple(x.shape[2:])),
        "value gradient": partial(sparse.value_grad, grad, x, topology, WINDOW),
    }


@torch.no_grad()
def layer(network: str, sizes: tuple[int, int, int], batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A record for each pattern and density of one layer: milliseconds of each pass, and how often dense takes as long."""
    channels, out, side = sizes
    torch.manual_seed(0)
    x, grad = torch.randn(batch, channels, side, side), torch.randn(batch, out, side, side)
    dense = dense_calls(x, torch.randn(out, channels, 3, 3), grad)
    sparsely = {case: sparse_calls(x, grad, *case) for case in (*CASES, BARE)}
    best, ms = {}, {}
    for name in PASSES:
        calls: dict[str, Callable[[], Any]] = {f"dense {layout}": call for layout, call in dense[name].items()}
        calls |= {f"{pattern} {density}": sparsely[pattern, density][name] for pattern, density in sparsely}
        times = {way: median(each) for way, each in interleaved(calls, rounds).items()}
        best[name] = min((time, way) for way, time in times.items() if way.startswith("dense"))
        ms[name] = times
    bare = {name: ms[name]["unstructured 0.0"] for name in PASSES}
    for pattern, density in CASES:
        own = {name: ms[name][f"{pattern} {density}"] for name in PASSES}
        yield {
            "network": network, "channels": channels, "out": out, "side": side, "batch": batch, "pattern": pattern,
            "density": density, "threads": torch.get_num_threads(), "ms": own, "best_dense": best, "bare": bare,
            "speedup": {name: best[name][0] / own[name] for name in PASSES},
            "speedup_of_all": sum(each[0] for each in best.values()) / sum(own.values()), "machine": machine(),
        }  # fmt: skip


def step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """One training step by momentum, prepared."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return run


def steps(network: str, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a training step of a whole network: dense in both layouts, and sparse; each as it is, and compiled."""
    torch.manual_seed(0)
    model = build(network, usual_ends(network))
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    last = torch.channels_last
    ways = {
        "dense contiguous": (copy.deepcopy(model), x),
        "dense channels last": (copy.deepcopy(model).to(memory_format=last), x.contiguous(memory_format=last)),
    }
    for pattern, density, allocation in STEPS:
        sparsely = copy.deepcopy(model)
        patterns: Mapping[str, str] = {"*": pattern, "head": "unstructured"}
        plan = pollard.prune(sparsely, "magnitude", density, allocation=allocation, pattern=patterns)
        pollard.sparsify_(sparsely, plan)
        ways[f"{pattern} {density} {allocation}"] = (sparsely, x)
    calls = {way: step(own, images, labels) for way, (own, images) in ways.items()}
    calls |= {f"{way} compiled": step(torch.compile(own), images, labels) for way, (own, images) in ways.items()}
    ms = {way: median(each) for way, each in interleaved(calls, rounds, long=60).items()}
    best = min(time for way, time in ms.items() if way.startswith("dense"))
    return {
        "network": network, "batch": batch, "threads": torch.get_num_threads(), "ms": ms,
        "speedup": {way: best / time for way, time in ms.items()}, "machine": machine(),
    }  # fmt: skip


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch", type=int, default=64, help="of layers; steps take 128")
    parser.add_argument("--steps", action="store_true", help="whole training steps, not layers")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    records = []
    for threads in asked.threads:
        torch.set_num_threads(threads)
        for record in _whole(asked.rounds) if asked.steps else _layers(asked.batch, asked.rounds):
            records.append(record)
            sys.stdout.write(f"threads {threads}  {_told(record)}\n")
            sys.stdout.flush()
    if asked.record:
        name = "convolution-steps.json" if asked.steps else "convolutions.json"
        path = RECORDS / name
        # What another machine took stays beside it.
        others = [
            each for each in json.loads(path.read_text(encoding="utf-8")) if each["machine"]["cpu"] != machine()["cpu"]
        ]
        path.write_text(json.dumps(others + records, indent=1) + "\n", encoding="utf-8")


def _layers(batch: int, rounds: int) -> Iterator[dict[str, Any]]:
    for network, sizes in ((network, each) for network, kinds in LAYERS.items() for each in kinds):
        yield from layer(network, sizes, batch, rounds)


def _whole(rounds: int) -> Iterator[dict[str, Any]]:
    return (steps(network, 128, rounds) for network in ("resnet-20", "vgg-16"))


def _told(record: Mapping[str, Any]) -> str:
    if "channels" not in record:
        return f"{record['network']:10} " + "  ".join(
            f"{way} {time:.0f} ms {record['speedup'][way]:.2f}x" for way, time in record["ms"].items()
        )
    most = {name: record["best_dense"][name][0] / record["bare"][name] for name in PASSES}
    each = "  ".join(
        f"{name} {record['ms'][name]:6.2f} ms {record['speedup'][name]:5.2f}x (of {most[name]:.1f})" for name in PASSES
    )
    sizes = f"{record['channels']}x{record['out']} {record['side']}x{record['side']}"
    return f"{sizes:15} {record['pattern']:12} {record['density']:4.0%}  {each}  all {record['speedup_of_all']:5.2f}x"


if __name__ == "__main__":
    main()
