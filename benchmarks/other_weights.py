"""An LSTM and attention made sparse, beside torch's own modules: forward, and forward with backward.

python benchmarks/other_weights.py [--rounds 9] [--threads 1 2] [--record]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import pollard
from pollard.report.machine import machine
from pollard.report.timing import interleaved

RECORD = Path(__file__).parent / "records" / "other_weights.json"
DENSITIES = (0.1, 0.02)


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.within = nn.MultiheadAttention(384, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs alone, for `(batch, steps, 384)`."""
        y: Tensor = self.within(x, x, x, need_weights=False)[0]
        return y


class Recurrent(nn.Module):
    """An LSTM as wide as that of Zaremba et al. 2014."""

    def __init__(self) -> None:
        super().__init__()
        self.within = nn.LSTM(650, 650, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs alone, for `(batch, steps, 650)`."""
        y: Tensor = self.within(x)[0]
        return y


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LSTM(650, 650), 35 steps": (Recurrent, (20, 35, 650)),
    "MultiheadAttention(384, 6), 64 steps": (Attention, (16, 64, 384)),
}


def measure(case: str, density: float, rounds: int) -> dict[str, Any]:
    """Medians in milliseconds, dense and sparse in turns."""
    torch.manual_seed(0)
    make, shape = CASES[case]
    dense, x = make(), torch.randn(shape)
    sparse = copy.deepcopy(dense)
    pollard.sparsify_(sparse, pollard.prune(sparse, "random", density))
    found: dict[str, Any] = {"case": case, "density": density, "threads": torch.get_num_threads(), "machine": machine()}
    for name, through in (("forward", _forward), ("forward+backward", _both)):
        calls = {"sparse": partial(through, sparse, x), "as it is": partial(through, dense, x)}
        ms = {kind: median(times) for kind, times in interleaved(calls, rounds).items()}
        best_ms, best = min((time, way) for way, time in ms.items() if way != "sparse")
        found[name] = {
            "ms": ms["sparse"], "dense_ms": ms["as it is"], "best_dense_ms": best_ms, "best_dense": best,
            "speedup": best_ms / ms["sparse"], "module_speedup": ms["as it is"] / ms["sparse"],
        }  # fmt: skip
    return found


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor) -> None:
    model(x)


def _both(model: nn.Module, x: Tensor) -> None:
    model(x).sum().backward()


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    records = []
    for threads, case, density in product(asked.threads, CASES, DENSITIES):
        torch.set_num_threads(threads)
        records.append(measure(case, density, asked.rounds))
        told = "  ".join(
            f"{name} {records[-1][name]['ms']:6.1f} ms, best dense {records[-1][name]['best_dense_ms']:6.1f}: "
            f"{records[-1][name]['speedup']:5.2f}x"
            for name in ("forward", "forward+backward")
        )
        sys.stdout.write(f"{case:38} {density:4.0%}  threads {threads}  {told}\n")
        sys.stdout.flush()
    if asked.record:
        RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
