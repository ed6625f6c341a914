"""What a number by position takes, in nanoseconds of a core: uniform and normal ones, over blocks of rows; seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pollard.report.machine import machine
from pollard.streams import Stream

RECORD = Path(__file__).parent / "records" / "drawn.json"
ROWS, COLUMNS, CALLS = 64, 4096, 200


def nanoseconds(fill: Callable[..., Tensor]) -> float:
    """A number's, of the fastest of many calls."""
    out = torch.empty(ROWS, COLUMNS)
    fill(0, ROWS, COLUMNS, out=out)
    taken = []
    for _ in range(CALLS):
        started = time.thread_time_ns()
        fill(0, ROWS, COLUMNS, out=out)
        taken.append(time.thread_time_ns() - started)
    return round(min(taken) / out.numel(), 3)


def main() -> None:
    """Measures, keeps and prints."""
    torch.set_num_threads(1)
    stream = Stream(seed=0, layer=0)
    rows = [{"kind": kind, "nanoseconds": nanoseconds(getattr(stream, kind))} for kind in ("uniform", "normal")]
    RECORD.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
