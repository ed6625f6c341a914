"""What a topology update costs: in ordinary steps of a layer, and in throughput where an update comes every 100 steps.

One layer, 4096 x 4096 at 10 % density and batch 128 by default: forward, both gradients, Adam. Per method, steps and updates
are timed in turns in one process: a round is some steps with the topology at rest, then one step with an update, then the
step after it, which makes anew whatever kernels derive from a topology. The cost of an update is the time of these two steps
beyond two ordinary ones; for RigL, whose update takes the place of the optimizer's step, the same. Prints JSON, and writes
records/updates.json with --record.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

import pollard
from pollard.training.methods import METHODS

RECORD = Path(__file__).parent / "records" / "updates.json"
STEADY = 9


class Loop:
    """A layer in training, whose method updates when it is told to."""

    def __init__(self, method: str, size: int, density: float, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layer = pollard.nn.SparseLinear.random(size, size, density, generator=generator)
        model = torch.nn.Sequential(self.layer)
        self.optimizer = torch.optim.Adam(model.parameters(), fused=True)
        made = METHODS[method](density, 10**6, **({} if method == "static" else {"every": STEADY + 2}))
        # So that the update is the first of the two steps that end a round.
        self.sparsifier = pollard.Sparsifier(model, self.optimizer, replace(made, start=STEADY + 1))
        # Features first, as the layers of a network hand them on; a leaf, so that its gradient is computed.
        self.x = torch.randn(size, batch, generator=generator).t().requires_grad_()
        self.target = torch.randn(size, batch, generator=generator).t()

    def step(self) -> float:
        """One step; its seconds."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.x.grad = None
        self.layer(self.x).backward(self.target)
        self.sparsifier.step()
        return time.perf_counter() - started


def cost(loop: Loop, rounds: int) -> dict[str, float]:
    """The median ordinary step and the median update, in milliseconds and in steps."""
    steps, updates = [], []
    for turn in range(rounds + 1):
        steady = [loop.step() for _ in range(STEADY)]
        moved = [loop.step(), loop.step()]
        if turn:  # the first round tunes and compiles
            steps.append(median(steady))
            updates.append(sum(moved) - 2 * steps[-1])
    step, update = median(steps), median(updates)
    return {
        "step_ms": round(1e3 * step, 2),
        "update_ms": round(1e3 * update, 2),
        "update_in_steps": round(update / step, 2),
        "throughput_at_100": round(100 / (100 + update / step), 4),
    }


def main() -> None:
    """Time each method on each number of threads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="set,gse,rigl,mest,snfs")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write records/updates.json")
    given = parser.parse_args()
    told = []
    for threads in map(int, given.threads.split(",")):
        torch.set_num_threads(threads)
        for method in given.methods.split(","):
            loop = Loop(method, given.size, given.density, given.batch)
            told.append({"method": method, "threads": threads, **cost(loop, given.rounds)})
            print(json.dumps(told[-1]), flush=True)
    if given.record:
        RECORD.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
