"""What a run came to, beside its dense twin where there is one: a table, curves and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pollard.report.plot import Bars, Figure, Series
from pollard.report.render import plain_table, quantity_bytes, quantity_seconds, quantity_share

Result = Mapping[str, Any]


def held_bytes(result: Result) -> int:
    """Bytes that training holds for the network: values, indices, other parameters, gradients, optimizer state, buffers.

    >>> held_bytes({"bytes": {"values": 400, "indices": 420, "gradients": 400}})
    1220
    """
    return sum(result["bytes"].values())


def comparison_table(result: Result) -> Table:
    """The figures of a run, the dense twin's beside them, and how many times smaller or faster the run is."""
    dense: Result | None = result["dense"]
    recipe = result["recipe"]
    precision = recipe.get("precision", "float32")
    title = f"{recipe['model']} on {recipe['data']}" + (f" in {precision}" if precision != "float32" else "")
    columns = ("", name_of(result), *(("dense twin", "dense / sparse") if dense else ()))
    table = plain_table(title, columns, [])
    moved = result.get("explored_rate", 0.0) > result["density"] and result.get("training_flops") is not None
    held_out = result.get("validation_accuracy") is not None
    for label, read, show in (_VALIDATED if held_out else []) + _ROWS + (_MOVED if moved else []):
        row = [label, show(read(result))]
        if dense:
            row += [show(read(dense)), _ratio(read(result), read(dense)) if label in _COSTS else ""]
        table.add_row(*row)
    return table


_VALIDATED: list[tuple[str, Any, Any]] = [
    ("validation accuracy", lambda r: r["validation_accuracy"], quantity_share),
    ("validation loss", lambda r: r["validation_loss"], "{:.4f}".format),
]
_ROWS: list[tuple[str, Any, Any]] = [
    ("test accuracy", lambda r: r["test_accuracy"], quantity_share),
    ("test loss", lambda r: r["test_loss"], "{:.4f}".format),
    ("train loss", lambda r: r["train_loss"], "{:.4f}".format),
    ("density", lambda r: r["density"], "{:.4g}".format),
    ("weights kept", lambda r: r["nnz"], "{:,}".format),
    ("weights and biases", lambda r: r["bytes"]["values"] + r["bytes"]["dense"], quantity_bytes),
    ("indices and masks", lambda r: r["bytes"]["indices"] + r["bytes"]["buffers"], quantity_bytes),
    ("gradients", lambda r: r["bytes"]["gradients"], quantity_bytes),
    ("optimizer", lambda r: r["bytes"]["optimizer"], quantity_bytes),
    ("all of these", held_bytes, quantity_bytes),
    ("peak RSS", lambda r: r["peak_rss_bytes"], quantity_bytes),
    ("  of it, before the run", lambda r: r["baseline_rss_bytes"], quantity_bytes),
    ("a step", lambda r: r["seconds_per_step"], quantity_seconds),
]
_MOVED: list[tuple[str, Any, Any]] = [
    ("weights ever kept", lambda r: r["explored_rate"], quantity_share),
    ("training FLOPs, of dense", lambda r: r["training_flops"] or 1.0, quantity_share),
    ("outputs that keep nothing", lambda r: r["dead_neurons"], "{:,}".format),
]
_COSTS = {"weights kept", "all of these", "peak RSS", "a step"}


def name_of(result: Result) -> str:
    """What a run is called in a table or a legend.

    >>> name_of({"recipe": {"method": "snip"}, "density": 0.05}), name_of({"recipe": {"method": "dense"}, "density": 1.0})
    ('snip, 5 % kept', 'dense')
    """
    method: str = result["recipe"]["method"]
    return method if method == "dense" else f"{method}, {result['density'] * 100:.3g} % kept"


def accuracy_curves(
    result: Result, metrics: Sequence[Mapping[str, float]], twin: Sequence[Mapping[str, float]] | None = None
) -> list[Series]:
    """Test accuracy in percent by epoch, from the lines of metrics of a run and of its dense twin."""
    curves = [_accuracy(name_of(result), metrics)]
    return curves if twin is None else [*curves, _accuracy("dense twin", twin)]


def run_figure(result: Result, curves: Sequence[Series]) -> Figure:
    """The curves and, where there is a dense twin, what both cost."""
    recipe, dense = result["recipe"], result["dense"]
    kept = f"{result['nnz']:,} of {result['weights']:,} weights kept"
    return Figure(
        title=f"{recipe['model']} on {recipe['data']}",
        subtitle=", ".join([name_of(result), kept, f"{recipe['epochs']} epochs", f"seed {recipe['seed']}"]),
        x_label="epoch",
        y_label="test accuracy, %",
        series=tuple(curves),
        bars=tuple(_bars(title, read, show, (result, dense)) for title, read, show in _BARS) if dense else (),
    )


_BARS: list[tuple[str, Any, Any]] = [
    ("weights, indices, gradients and optimizer", held_bytes, quantity_bytes),
    ("a training step", lambda r: r["seconds_per_step"], quantity_seconds),
    ("peak memory of the process, torch included", lambda r: r["peak_rss_bytes"], quantity_bytes),
    ("test error", lambda r: 1 - r["test_accuracy"], quantity_share),
]


def _bars(title: str, read: Any, show: Any, results: Sequence[Result]) -> Bars:
    return Bars(title, tuple((name_of(result), read(result), show(read(result))) for result in results))


def _accuracy(name: str, metrics: Sequence[Mapping[str, float]]) -> Series:
    return Series(name, tuple((line["epoch"], 100 * line["test_accuracy"]) for line in metrics))


def _ratio(sparse: float, dense: float) -> str:
    if not sparse:
        return "-"
    return f"{dense / sparse:.2f}x" + ("" if dense >= sparse else " (dense wins)")
