"""What a step of AdamW takes in bfloat16 with stochastic rounding, beside the same in float32 and, losing small updates, in bfloat16.

Parameters of one size each, and of a network of many small ones; torch's fused step in all, in turns. Prints a line a case, and
writes records/rounding.json with --record.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from allocations import allocated
from torch import Tensor
from torch.optim import AdamW, Optimizer

from pollard.report.machine import machine
from pollard.report.timing import interleaved
from pollard.training import StochasticRounding

RECORD = Path(__file__).parent / "records" / "rounding.json"
CASES = {"one of 65 thousand": (1 << 16,), "one of a million": (1 << 20,), "one of 16 million": (1 << 24,)} | {
    "a hundred of a thousand": (1000,) * 100
}
WAYS: dict[str, tuple[torch.dtype, Callable[[Optimizer], Optimizer]]] = {
    "float32": (torch.float32, lambda optimizer: optimizer),
    "bfloat16, to nearest": (torch.bfloat16, lambda optimizer: optimizer),
    "bfloat16, stochastic": (torch.bfloat16, StochasticRounding),
}


def prepared(way: str, sizes: tuple[int, ...]) -> Optimizer:
    """An optimizer of parameters of `sizes` that has taken a step."""
    dtype, wrapped = WAYS[way]
    made = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=made).to(dtype)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=made).to(dtype)
    optimizer = wrapped(AdamW(parameters, 1e-3, fused=True))
    optimizer.step()
    return optimizer


def held(optimizer: Optimizer) -> int:
    """Bytes of parameters, gradients and state."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state = [entry for own in optimizer.state.values() for entry in own.values() if isinstance(entry, Tensor)]
    return sum(each.nbytes for each in (*parameters, *parameters, *state))


def measured(sizes: tuple[int, ...], rounds: int) -> dict[str, dict[str, Any]]:
    """By way: nanoseconds a number, bytes held a number, bytes allocated beyond it a number at the most."""
    count = sum(sizes)
    optimizers = {way: prepared(way, sizes) for way in WAYS}
    beyond = {way: allocated(optimizer.step)[1] for way, optimizer in optimizers.items()}
    times = interleaved({way: optimizer.step for way, optimizer in optimizers.items()}, rounds)
    return {
        way: {
            "nanoseconds": round(1e6 * statistics.median(times[way]) / count, 2),
            "bytes_held": round(held(optimizer) / count, 2),
            "bytes_beyond": round(beyond[way] / count, 2),
        }
        for way, optimizer in optimizers.items()
    }


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {}
    for name, sizes in CASES.items():
        cases[name] = measured(sizes, given.rounds)
        print(name, cases[name], flush=True)
    if given.record:
        RECORD.write_text(json.dumps({"cases": cases, "machine": machine()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
