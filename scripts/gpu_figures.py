"""Figures of benchmarks/products_cuda.py: sparse layers on a GPU beside nn.Linear, and a network that is too wide for it."""

from __future__ import annotations

from typing import Any

from records import load

from pollard.report.render import markdown

OPERATIONS = ("forward", "forward+backward")


def products_cuda() -> str:
    """How many times as fast as the faster of dense torch's two layouts: inputs stored row by row, as other layers leave them."""
    record = load("products-cuda.json")
    dense = {
        (each["dtype"], each["batch"], operation): min(
            each[f"{operation}_{stored}_ms"] for stored in ("rows", "features")
        )
        for each in record["rows"]
        for operation in OPERATIONS
        if each["pattern"] == "dense"
    }
    cases: dict[tuple[str, float], dict[tuple[str, int, str], str]] = {}
    for each in record["rows"]:
        for operation in OPERATIONS:
            at = each["dtype"], each["batch"], operation
            ratio = dense[at] / each[f"{operation}_rows_ms"]
            if each["pattern"] != "dense":
                cases.setdefault((each["pattern"], each["density"]), {})[at] = f"{ratio:.2f}x"
    head = ["pattern", "kept"]
    head += [f"{dtype}, {batch}: {'forward' if operation == 'forward' else 'all'}" for dtype, batch, operation in dense]
    rows = [[pattern, f"{density:.0%}", *(found[at] for at in dense)] for (pattern, density), found in cases.items()]
    return f"{record['device']}, a layer of 4096 x 4096, batches of 4096 and 256:\n\n{markdown(head, rows, left=2)}"


def wide_cuda() -> str:
    """Networks born sparse whose dense form has no room on the GPU."""
    record = load("products-cuda.json")
    rows = [_wide(each) for each in record["wide"]]
    head = ["pattern", "kept", "peak on the GPU", "dense with Adam", "a step"]
    return f"{record['device']}, three layers of 65,536 x 65,536 at 1 %, Adam, batches of 256:\n\n{markdown(head, rows, left=1)}"


def _wide(each: dict[str, Any]) -> list[str]:
    sizes = [f"{each[name] / 1e9:.1f} GB" for name in ("peak_bytes", "dense_adam_bytes")]
    return [each["pattern"], f"{each['kept'] / 1e6:.0f} million", *sizes, f"{each['step_ms']:.0f} ms"]
