"""Sparse layers on a GPU beside nn.Linear of the same precision: products, whole training steps, memory, and a network that is too wide.

    python benchmarks/products_cuda.py [--rounds 15] [--out benchmarks/records/products-cuda.json]

Times are medians by CUDA events, of CUDA graphs and as Python launches; every case runs dense beside it, with inputs stored row by row and feature by feature, and the
faster is its baseline. torch.sparse is there in float32. Bytes are torch's own peak, of what it allocated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from overlapping import FIRST, Graph
from torch import Tensor, nn

import pollard
from pollard.formats.topology import Topology
from pollard.kernels.products import torch_sparse
from pollard.nn.linear import SparseLinear

RECORD = Path(__file__).parent / "records" / "products-cuda.json"
SIDE, BATCHES = 4096, (4096, 256)
PATTERNS, DENSITIES = ("unstructured", "v8", "v16", "b16x16"), (0.1, 0.05, 0.01)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WIDE, WIDE_BATCH = 65_536, 256
DEVICE = torch.device("cuda")


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """The median of `rounds`, each waited for by the device alone."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for before, after in pairs:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in pairs)


def timed(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Of the device alone, which replays a graph, and as Python starts one kernel after the other."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(FIRST):
            run()
    torch.cuda.synchronize()
    graph = Graph(run, stream=stream)
    graph()
    return {"ms": milliseconds(graph, rounds), "launched_ms": milliseconds(run, rounds)}


def both_ways(layer: nn.Module, batch: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Forward product, and with both gradients, of inputs stored row by row and feature by feature."""
    found: dict[str, float] = {}
    for stored in ("rows", "features"):
        x, grad = (torch.randn(batch, SIDE, device=DEVICE).to(dtype) for _ in range(2))
        if stored == "features":
            x, grad = (each.t().contiguous().t() for each in (x, grad))
        with torch.no_grad():
            forward = timed(lambda x=x: layer(x), rounds)
        x.requires_grad_()

        def step(x: Tensor = x, grad: Tensor = grad) -> None:
            x.grad = None
            layer.zero_grad()
            layer(x).backward(grad)

        both = timed(step, rounds)
        for operation, times in (("forward", forward), ("forward+backward", both)):
            found |= {f"{operation}_{stored}_{kind}": time for kind, time in times.items()}
    return found


def products(rounds: int) -> list[dict[str, Any]]:
    """Layers of `SIDE` by `SIDE`."""
    rows = []
    for name, dtype in DTYPES.items():
        for batch in BATCHES:
            dense = both_ways(nn.Linear(SIDE, SIDE, device=DEVICE, dtype=dtype), batch, dtype, rounds)
            rows.append({"pattern": "dense", "dtype": name, "batch": batch, "density": 1.0, **dense})
            for pattern in PATTERNS:
                for density in DENSITIES:
                    topology = Topology.random((SIDE, SIDE), density, pattern, torch.Generator().manual_seed(0))
                    layer = SparseLinear(SIDE, SIDE, topology).to(DEVICE, dtype)
                    case = {"pattern": pattern, "dtype": name, "batch": batch, "density": density}
                    rows.append(
                        {**case, **both_ways(layer, batch, dtype, rounds), **by_torch(topology, batch, name, rounds)}
                    )
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def by_torch(topology: Topology, batch: int, dtype: str, rounds: int) -> dict[str, float]:
    """The forward product by torch's own sparse one, where it has it."""
    if dtype != "float32" or topology.pattern.size > 1:
        return {}
    x, values = torch.randn(SIDE, batch, device=DEVICE).t(), torch.randn(topology.nnz, device=DEVICE)
    run = lambda: torch_sparse.forward(x, values, topology)  # noqa: E731
    run()
    return {"torch_sparse_forward_launched_ms": milliseconds(run, rounds)}


def wide() -> list[dict[str, Any]]:
    """Three layers of `WIDE` by `WIDE` at 1 %, born sparse, in steps of Adam; what dense would hold is arithmetic."""
    rows = []
    for pattern in ("b16x16", "unstructured"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        layers = [SparseLinear.random(WIDE, WIDE, 0.01, pattern).to(DEVICE) for _ in range(3)]
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        x = torch.randn(WIDE_BATCH, WIDE, device=DEVICE)

        def step(model: nn.Module = model, optimizer: Any = optimizer, x: Tensor = x) -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        step()
        taken = milliseconds(step, 5)
        kept = sum(each.topology.nnz for each in layers)
        rows.append({
            "pattern": pattern, "layers": 3, "side": WIDE, "batch": WIDE_BATCH, "kept": kept, "step_ms": taken,
            "peak_bytes": torch.cuda.max_memory_allocated(), "dense_adam_bytes": 3 * WIDE * WIDE * 16,
            "device_bytes": torch.cuda.get_device_properties(0).total_memory,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        del layers, model, optimizer, step
    return rows


def main() -> None:
    """Measure all, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="samples of each time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "pollard": pollard.__version__,
        "rows": products(given.rounds),
        "wide": wide(),
    }
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
