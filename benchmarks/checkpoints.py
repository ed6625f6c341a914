"""Peak memory and time of pruning a checkpoint from file to file, each case in a fresh process; a minute or two.

Files of float32 matrices of 5120 x 5120, magnitude, one thread. Peaks of resident memory are above what it was after a small file
went the same way, so that importing is left out; seconds are those of the core, which others on the machine do not lengthen.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from fresh import told_by

import pollard
from pollard.formats import save_tensors
from pollard.report.machine import machine
from pollard.report.measure import forget_peak_rss, peak_rss_bytes, rss_bytes

RECORD = Path(__file__).parent / "records" / "checkpoints.json"
SIDE = 5120
CASES = ((4, 0.01, "erk"), (20, 0.01, "erk"), (20, 0.01, "global"), (20, 0.1, "erk"))  # matrices, density, allocation


def write(path: Path, matrices: int, side: int = SIDE) -> None:
    """A dense checkpoint of normal weights."""
    draw = torch.Generator().manual_seed(0)
    save_tensors(path, {f"{i:02}.weight": torch.randn(side, side, generator=draw) for i in range(matrices)}, {})


def pruned(path: Path, density: float, allocation: str) -> dict[str, float]:
    """Peak and seconds of one pruning in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        small, out = Path(folder) / "small.safetensors", Path(folder) / "out.safetensors"
        write(small, 2, side=64)
        pollard.prune_checkpoint(small, out, "magnitude", density, allocation=allocation)
        before, started = rss_bytes(), time.process_time()
        forget_peak_rss()
        plan = pollard.prune_checkpoint(path, out, "magnitude", density, allocation=allocation)
        seconds = time.process_time() - started
        return {"kept": plan.nnz, "peak_above_baseline": peak_rss_bytes() - before, "seconds": round(seconds, 2)}


def main() -> None:
    """All cases, each by a process of its own."""
    if len(sys.argv) > 1:
        path, density, allocation = sys.argv[1:]
        print(json.dumps(pruned(Path(path), float(density), allocation)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for matrices, density, allocation in CASES:
            path = Path(folder) / f"{matrices}.safetensors"
            if not path.exists():
                write(path, matrices)
            told = told_by(Path(__file__).name, str(path), str(density), allocation)
            setting = {"matrices": matrices, "bytes": path.stat().st_size, "density": density, "allocation": allocation}
            rows.append({**setting, **told})
            print(rows[-1])
    RECORD.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
