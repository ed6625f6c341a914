"""The three products in float64, bfloat16 and float16, beside those of nn.Linear in the same precision, in turns.

    python benchmarks/precisions.py [--dtypes float64] [--threads 1 2] [--batches 1 8 64] [--rounds 15]

A star marks what takes more than 3 times as long as nn.Linear's. `pollard bench --dtype` compares with torch's fastest way.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from statistics import median

import torch
from torch.nn.functional import linear

from pollard.formats.topology import Topology
from pollard.kernels.products import dispatch
from pollard.report.timing import interleaved

SHAPES = ((256, 256), (1024, 1024), (4096, 1024), (4096, 4096))
DENSITIES = (0.01, 0.1, 0.2)
WORST = 3.0


def measure(topology: Topology, dtype: torch.dtype, batch: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Microseconds of each product, sparse and dense: medians."""
    out, width = topology.shape
    made = torch.Generator().manual_seed(0)
    weight, x, grad, values = (
        torch.randn(*size, generator=made, dtype=torch.float32).to(dtype)
        for size in ((out, width), (batch, width), (batch, out), (topology.nnz,))
    )
    pairs = {
        "forward": (lambda: dispatch.forward(x, values, topology), lambda: linear(x, weight)),
        "input_grad": (lambda: dispatch.input_grad(grad, values, topology), lambda: grad @ weight),
        "value_grad": (lambda: dispatch.value_grad(grad, x, topology), lambda: grad.t() @ x),
    }
    found = {}
    for name, (sparse, dense) in pairs.items():
        ms = interleaved({"sparse": sparse, "dense": dense}, rounds)
        found[name] = (1e3 * median(ms["sparse"]), 1e3 * median(ms["dense"]))
    return found


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float64", "bfloat16", "float16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    for threads, dtype, shape, density in product(asked.threads, asked.dtypes, SHAPES, DENSITIES):
        torch.set_num_threads(threads)
        topology = Topology.random(shape, density, "unstructured", torch.Generator().manual_seed(0))
        for batch in asked.batches:
            texts = [
                f"{name} {sparse:8.0f} us, {sparse / dense:5.2f} of dense{'*' if sparse > WORST * dense else ' '}"
                for name, (sparse, dense) in measure(topology, getattr(torch, dtype), batch, asked.rounds).items()
            ]
            head = f"{dtype:8} {shape[0]:4} x {shape[1]:4} {density:3.0%} batch {batch:3} threads {threads}"
            sys.stdout.write(f"{head}  {'  '.join(texts)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
