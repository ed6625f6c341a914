"""The peak of a forward and backward pass over a sparse tensor of torch, each way in a fresh process; seconds.

A weight of 8192 x 8192 with 1 % kept, in CSR with 64-bit indices as torch makes it, and 8 samples, on one thread. Peaks of resident
memory are above what it was with all of that in place, after a small weight went the same way.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from fresh import told_by
from torch import Tensor, nn

from pollard.report.machine import machine
from pollard.report.measure import forget_peak_rss, peak_rss_bytes, rss_bytes

RECORD = Path(__file__).parent / "records" / "torch-sparse.json"
WAYS = {
    "linear": nn.functional.linear,
    "sparse.mm": lambda x, weight: torch.sparse.mm(weight, x.t()),
}
SIDE, EACH_ROW, SAMPLES = 8192, 82, 8


def weight(side: int, each_row: int) -> nn.Parameter:
    """`each_row` ones in every row, evenly spaced, in CSR; made without copies, whose memory a pass could take again."""
    step = side // each_row
    columns = torch.arange(side)[:, None] % step + step * torch.arange(each_row)
    rows = torch.arange(0, side * each_row + 1, each_row)
    return nn.Parameter(torch.sparse_csr_tensor(rows, columns.flatten(), torch.ones(side * each_row), (side, side)))


def passed(way: str, sparse: nn.Parameter, x: Tensor) -> None:
    """Both passes."""
    WAYS[way](x, sparse).sum().backward()


def peak(way: str) -> dict[str, int]:
    """Bytes of the values, and the peak above them."""
    torch.set_num_threads(1)
    passed(way, weight(64, 2), torch.randn(SAMPLES, 64))
    sparse, x = weight(SIDE, EACH_ROW), torch.randn(SAMPLES, SIDE)
    before = rss_bytes()
    forget_peak_rss()
    passed(way, sparse, x)
    return {"values_bytes": sparse.detach().values().nbytes, "peak_above_baseline": peak_rss_bytes() - before}


def main() -> None:
    """Both ways, each by a process of its own."""
    warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
    if len(sys.argv) > 1:
        print(json.dumps(peak(sys.argv[1])))
        return
    rows = [{"way": way, **told_by(Path(__file__).name, way)} for way in WAYS]
    RECORD.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
