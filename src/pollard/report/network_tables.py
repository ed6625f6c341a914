"""How the costs of whole networks look to people. Nothing here measures or decides."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pollard.report.network_costs import SPARSE, LayerCost, Matrix, NetworkCosts
from pollard.report.render import best_dense, plain_table, quantity_ms, quantity_ratio, quantity_share
from pollard.tables import PrintedTable

LONG = 12  # layers, above which those that are alike share a row
VS_DENSE = "vs\nbest dense"
_SHORT = {"bfloat16": "bf16"}


def network_tables(records: Sequence[Mapping[str, Any]]) -> list[PrintedTable]:
    """Records of whole networks as rows, a table for each network, its inputs and number of threads.

    Ratios say how many times as fast the sparse network is: as the fastest dense one in the same precision, whose way is named,
    as the dense one as it is, and as the fastest in float32 and in bfloat16. A row that dense wins says so, in red.
    """
    tables: dict[str, PrintedTable] = {}
    for record in records:
        heading = _heading(record["network"], record["inputs"], record["threads"])
        table = tables.setdefault(heading, plain_table(heading, list(_COLUMNS), [], left=2))
        cells = [tell(record) for tell in _COLUMNS.values()]
        table.add_row(*cells, style="red" if record["dense_wins"] else None)
    for table in tables.values():
        for column in table.columns:
            column.no_wrap = column.header != VS_DENSE
            if column.header == VS_DENSE:
                column.justify = "left"
    return list(tables.values())


def costs_tables(costs: NetworkCosts) -> list[PrintedTable]:
    """Milliseconds by layer, of the rest and in all, sparse and dense; and the kernel of each shape, with its reason.

    Where there are many layers, those that are alike share a row: names that differ in numbers only, around the same shape.
    """
    heading = _heading(costs.network, costs.inputs, costs.threads)
    title = f"{heading}, {costs.pattern}, {costs.dtype}: milliseconds a call"
    dense = [f"dense\n{_SHORT.get(dtype, dtype)}" for dtype in costs.dense]
    table = plain_table(title, ["layer", "shape", "kept", SPARSE, *dense, "speedup"], [], left=1)
    table.columns[0].no_wrap = False
    for name, layers in _rows(costs.layers).items():
        summed = {key: sum(layer.ms[key] for layer in layers) for key in costs.total}
        table.add_row(name, _shapes(layers[0]), _kept(layers), *_figures(costs, summed))
    table.add_section()
    table.add_row("rest of the network", "", "", *_figures(costs, costs.rest))
    table.add_row("total", "", "", *_figures(costs, costs.total), style="bold")
    ways = ", ".join(f"{dtype} by {way}" for dtype, way in costs.dense.items())
    table.caption, table.caption_justify = (
        f"dense: {ways}; {quantity_share(costs.share, 0)} of parameters are in sparse layers",
        "left",
    )
    return [table, _kernels(costs)]


def _heading(network: str, inputs: Sequence[Sequence[int]], threads: int) -> str:
    shapes = " and ".join("x".join(map(str, shape)) for shape in inputs)
    return f"{network} on {shapes}, {threads} thread{'s' * (threads > 1)}"


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "pattern": lambda record: record["pattern"],
    "dtype": lambda record: record["dtype"],
    "density": lambda record: f"{record['density']:.3g}",
    "ms": lambda record: quantity_ms(record["ms"]),
    VS_DENSE: best_dense,
    "vs\nnn.Linear": lambda record: quantity_ratio(record["nn_linear_speedup"]),
    "vs\nfloat32": lambda record: quantity_ratio(record["fp32_speedup"]),
    "vs\nbf16": lambda record: quantity_ratio(record["bf16_speedup"]),
}


def _rows(layers: Sequence[LayerCost]) -> dict[str, list[LayerCost]]:
    """The layers of each row, by what it is called."""
    found: dict[tuple[str, str], list[LayerCost]] = {}
    for layer in layers:
        name = re.sub(r"\b\d+\b", "*", layer.name) if len(layers) > LONG else layer.name
        found.setdefault((name, _shapes(layer)), []).append(layer)
    return {f"{name} ({len(alike)})" if len(alike) > 1 else alike[0].name: alike for (name, _), alike in found.items()}


def _shapes(layer: LayerCost) -> str:
    if not layer.matrices:
        return "not called"
    shapes = Counter(_shape(matrix) for matrix in layer.matrices)
    return "\n".join(f"{count} of {shape}" if count > 1 else shape for shape, count in shapes.items())


def _shape(matrix: Matrix) -> str:
    return "x".join(map(str, (*matrix.shape, matrix.rows)))


def _kept(layers: Sequence[LayerCost]) -> str:
    densities = [matrix.density for layer in layers for matrix in layer.matrices]
    return f"{statistics.fmean(densities):.3g}" if densities else ""


def _figures(costs: NetworkCosts, ms: Mapping[str, float]) -> list[str]:
    speedup = ms[costs.dtype] / ms[SPARSE] if ms[SPARSE] > 0 else None
    return [*map(quantity_ms, ms.values()), quantity_ratio(speedup)]


def _kernels(costs: NetworkCosts) -> PrintedTable:
    matrices = [matrix for layer in costs.layers for matrix in layer.matrices]
    rows = dict.fromkeys((_shape(matrix), matrix.kernel, matrix.reason) for matrix in matrices)
    return plain_table("kernels", ("out x in x rows", "kernel", "why"), list(rows), left=3)
