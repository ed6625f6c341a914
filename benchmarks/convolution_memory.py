"""Memory of training convolutional networks: what is held, and the peak of a step, dense and sparse, each in a process of its own.

A step of SGD with momentum on 128 images, one thread. Held are weights, gradients, momentum and buffers; what a step takes beside them are
activations and what is at work. Networks are drawn dense, pruned at random, uniformly, and the peaks are those of steps.

glibc's heap keeps the holes that tensors leave, and how many depends on the order in which they come and go. So each way is measured
twice: as it is, and with every large tensor mapped by itself, where resident is what is in use.

python benchmarks/convolution_memory.py [--networks vgg-16,resnet-20] [--batch 128] [--record]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fresh import told_by
from torch import nn
from torch.nn import functional

import pollard
from pollard.heap import hand_back
from pollard.kernels.products.workspace import trim
from pollard.networks.building import build, usual_ends
from pollard.report.measure import forget_peak_rss, module_bytes, peak_rss_bytes, rss_bytes

RECORD = Path(__file__).parent / "records" / "convolution-memory.json"
WAYS = ("dense:1", "unstructured:0.1", "unstructured:0.05", "v4:0.05")
STEPS = 4
# As soon as any of malloc's limits is set, glibc no longer raises the size from which blocks are mapped: it stays 128 KiB.
MAPPED = {"MALLOC_TOP_PAD_": "131072"}


def trained(network: str, way: str, batch: int) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """The network after some steps, and the peak of resident memory in them."""
    pattern, density = way.split(":")
    torch.manual_seed(0)
    model = build(network, usual_ends(network))
    if pattern != "dense":
        patterns: Mapping[str, str] = {"*": pattern, "head": "unstructured"}
        plan = pollard.prune(model, "random", float(density), allocation="uniform", pattern=patterns)
        pollard.sparsify_(model, plan)
    hand_back()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    forget_peak_rss()
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model, optimizer, peak_rss_bytes()


def measured(network: str, way: str, batch: int) -> dict[str, int]:
    """Bytes beyond what the process takes after the same once before, which loads, tunes and compiles what there is to."""
    torch.set_num_threads(1)
    trained(network, way, batch)
    trim()
    before = rss_bytes()
    model, optimizer, peak = trained(network, way, batch)
    return {"held": module_bytes(model, optimizer).total, "peak": peak - before}


def main() -> None:
    """Print a line for each way, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="vgg-16,resnet-20")
    parser.add_argument("--way", help="measure this one alone, here: dense:1, or a pattern and a density as in v4:0.05")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--record", action="store_true", help="write records/convolution-memory.json")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.networks, given.way, given.batch)))
        return
    rows: list[dict[str, Any]] = []
    for network in given.networks.split(","):
        for way in WAYS:
            words = ("--networks", network, "--way", way, "--batch", str(given.batch))
            found, mapped = (told_by(Path(__file__).name, *words, variables=each) for each in ({}, MAPPED))
            rows.append({"network": network, "way": way, "batch": given.batch, **found, "peak_in_use": mapped["peak"]})
            print(json.dumps(rows[-1]), flush=True)
    if given.record:
        RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
