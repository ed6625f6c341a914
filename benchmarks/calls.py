"""What a call of a layer costs where there is little to compute: one sample, through the module, beside `nn.Linear`.

    python benchmarks/calls.py [--rounds 31] [--record]

The layer of 8 inputs and outputs has nothing to compute: its time is the fixed cost of a call.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pollard.nn import SparseLinear
from pollard.report.timing import interleaved

RECORD = Path(__file__).parent / "records" / "calls.json"
LAYERS = (
    (8, 8, 0.5, "unstructured"),
    (384, 1536, 0.1, "unstructured"),
    (384, 1536, 0.1, "v4"),
    (2048, 2048, 0.1, "v4"),
)


def measure(layer: tuple[int, int, float, str], *, gradients: bool, rounds: int) -> dict[str, Any]:
    """Medians of one forward pass, dense and sparse in turns; with gradients, autograd records it."""
    out, width, density, pattern = layer
    sparse = SparseLinear.random(width, out, density, pattern, generator=torch.Generator().manual_seed(0))
    dense, x = sparse.to_dense(), torch.randn(1, width)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(sparse(x), dense(x), rtol=1e-4, atol=1e-5)
        us = {
            name: 1e3 * median(ms)
            for name, ms in interleaved({"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, rounds).items()
        }
    return {
        "shape": [out, width], "density": density, "pattern": pattern, "gradients": gradients,
        "threads": torch.get_num_threads(), "us": us["sparse"], "dense_us": us["dense"], "speedup": us["dense"] / us["sparse"],
    }  # fmt: skip


def main() -> None:
    """Print a table, and keep it with --record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    found = []
    for threads, layer, gradients in product((1, 2), LAYERS, (False, True)):
        torch.set_num_threads(threads)
        found.append(measure(layer, gradients=gradients, rounds=options.rounds))
        one = found[-1]
        sys.stdout.write(
            f"{one['shape'][0]:5} x {one['shape'][1]:<5} {one['density']:4.0%} {one['pattern']:13} threads {threads}  "
            f"{'autograd' if gradients else 'no_grad ':8} {one['us']:7.1f} us, dense {one['dense_us']:7.1f}: {one['speedup']:.2f}x\n"
        )
    if options.record:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
