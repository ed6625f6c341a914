"""Tables, curves and figures of a run: what they hold, and that they can be read by others."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pollard.report.plot import Bars, Figure, Series, svg, ticks
from pollard.report.render import bench_tables, plain_table, quantity_bytes, quantity_seconds, terminal_plot
from pollard.report.summary import accuracy_curves, comparison_table, held_bytes, run_figure

NUMBERS = st.floats(min_value=-1e6, max_value=1e6)
BYTES = {"values": 400, "indices": 420, "dense": 40, "gradients": 440, "optimizer": 440, "buffers": 0}
SPARSE = {
    "recipe": {"model": "lenet", "data": "a & b", "method": "snip", "epochs": 2, "seed": 0},
    "test_accuracy": 0.975,
    "test_loss": 0.1,
    "train_loss": 0.05,
    "density": 0.05,
    "nnz": 100,
    "weights": 2000,
    "bytes": BYTES,
    "peak_rss_bytes": 3e8,
    "baseline_rss_bytes": 2e8,
    "seconds_per_step": 0.001,
    "dense": None,
}
DENSE = SPARSE | {
    "recipe": SPARSE["recipe"] | {"method": "dense"},
    "density": 1.0,
    "nnz": 2000,
    "bytes": dict.fromkeys(BYTES, 8000),
    "peak_rss_bytes": 2.4e8,
    "seconds_per_step": 0.004,
}
METRICS = [{"epoch": 1, "test_accuracy": 0.9}, {"epoch": 2, "test_accuracy": 0.975}]


def printed(part: object) -> str:
    console = Console(width=200, markup=False)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def row(table: str, label: str) -> list[str]:
    [line] = [line for line in table.splitlines() if line.startswith(label + " ")]
    return line.removeprefix(label).split("  ")


@given(NUMBERS, NUMBERS)
def test_ticks_cover_the_range_and_are_few(one, other):
    low, high = sorted((one, other))
    found = ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_a_figure_is_well_formed_whatever_names_hold():
    bars = Bars("cost & more", (("<a>", 1.0, "1 < 2"), ("b", 4.0, "4")))
    figure = Figure("a & b", "<i>", "x", "y", (Series("<s>", ((1, 1.0), (2, 3.0))), Series("t", ((1, 2.0),))), (bars,))
    root = ET.fromstring(svg(figure))
    words = "".join(root.itertext())
    for name in ("a & b", "<i>", "<s>", "cost & more", "1 < 2"):
        assert name in words
    curve = root.find("{http://www.w3.org/2000/svg}polyline")
    first, last = (tuple(map(float, point.split(","))) for point in curve.get("points").split())
    assert first[0] < last[0]
    assert first[1] > last[1], "a larger value is drawn higher"


def test_bars_are_as_long_as_their_values():
    root = ET.fromstring(svg(Figure("t", "s", "x", "y", (), (Bars("b", (("a", 1.0, "1"), ("b", 4.0, "4"))),))))
    lengths = [float(bar.get("width")) for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("rx")]
    assert lengths[1] == pytest.approx(4 * lengths[0], rel=1e-3)


@given(st.lists(st.tuples(NUMBERS, st.one_of(NUMBERS, st.just(math.nan), st.just(math.inf))), max_size=8))
def test_any_curve_can_be_drawn(points):
    series = Series("loss", tuple(sorted(points, key=lambda point: point[0])))
    ET.fromstring(svg(Figure("t", "s", "x", "y", (series,))))
    lines = terminal_plot([series], width=20, height=5).plain.splitlines()
    assert len(lines) in (1, 8)


def test_a_terminal_plot_draws_both_curves_without_gaps():
    text = terminal_plot(
        [Series("up", ((0, 0.0), (1, 10.0))), Series("flat", ((0, 0.0), (1, 0.0)))], width=10, height=10
    )
    lines = text.plain.splitlines()
    assert [line for line in lines[:10] if not any(0x2801 <= ord(letter) <= 0x28FF for letter in line)] == []
    assert lines[-1].split() == ["up", "flat"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_960, "1.00 MB"), (5e12, "5000 GB")]
)
def test_bytes_read_well(count, text):
    assert quantity_bytes(count) == text


def test_seconds_read_well():
    assert [quantity_seconds(s) for s in (None, 1.0, 0.25, 2e-7)] == ["-", "1.00 s", "250 ms", "0.20 us"]


def test_names_and_figures_are_never_cut():
    table = plain_table("t", ("name", "what", "figure"), [("a-long-name", "word " * 40, "123,456,789")], left=2)
    console = Console(width=60)
    with console.capture() as capture:
        console.print(table)
    assert "a-long-name" in capture.get()
    assert "123,456,789" in capture.get()


def test_a_run_alone_has_one_column_of_figures():
    table = printed(comparison_table(SPARSE))
    assert "97.50 %" in table
    assert "dense" not in table
    assert run_figure(SPARSE, accuracy_curves(SPARSE, METRICS)).bars == ()


def test_what_was_held_out_stands_before_the_test_data_where_it_was():
    told = SPARSE | {"validation_accuracy": 0.9625, "validation_loss": 0.125}
    table = printed(comparison_table(told | {"dense": DENSE | told}))
    assert table.count("96.25 %") == 2
    assert table.index("validation loss") < table.index("test accuracy")
    assert "validation" not in printed(comparison_table(SPARSE))


def test_the_twin_stands_beside_and_wins_where_it_wins():
    table = printed(comparison_table(SPARSE | {"dense": DENSE}))
    assert "4.00x" in table
    assert "0.80x (dense wins)" in table
    assert held_bytes(SPARSE) == 1740


def test_nothing_kept_has_no_ratio():
    assert "-" in row(printed(comparison_table(SPARSE | {"nnz": 0, "dense": DENSE})), "weights kept")[-1]


def test_the_figure_of_a_run_shows_both_runs():
    told = SPARSE | {"dense": DENSE}
    curves = accuracy_curves(told, METRICS, METRICS)
    assert [one.name for one in curves] == ["snip, 5 % kept", "dense twin"]
    assert curves[0].points == ((1, 90.0), (2, 97.5))
    words = "".join(ET.fromstring(svg(run_figure(told, curves))).itertext())
    for part in ("lenet on a & b", "100 of 2,000 weights kept", "1.00 ms", "4.00 ms", "2.50 %"):
        assert part in words


def test_a_benchmark_table_marks_what_dense_wins():
    record = {
        "op": "forward",
        "pattern": "v4",
        "shape": [8, 4, 2],
        "density": 0.5,
        "threads": 1,
        "ms": 2.0,
        "dtype": "float32",
        "best_dense": "oneDNN packed",
        "speedup": 0.5,
        "nn_linear_speedup": 0.75,
        "bf16_speedup": None,
        "dense_wins": True,
        "torch_sparse_ms": None,
        "mkl_ms": 123.4,
        "scipy_ms": 3.0,
        "gflops": 1.0,
        "network": [],
    }
    network = record | {"network": [4, 8, 2], "op": "step", "dense_wins": False}
    text = "".join(printed(table) for table in bench_tables([record, record | {"density": 0.1}, network]))
    assert text.count("4-8-2, batch 2") == text.count("8x4x2, v4, float32, 1 thread") == 1
    assert text.count("0.50x oneDNN packed, dense wins") == 2
    assert "0.75x" in text
    assert "1.50x SciPy" in text


def test_a_benchmark_table_fits_a_narrow_terminal():
    record = {
        "op": "forward+backward", "pattern": "unstructured", "shape": [4096, 4096, 128], "network": [], "dtype": "bfloat16",
        "density": 0.025, "threads": 2, "ms": 1234.5, "gflops": 123.4, "best_dense": "products alone", "speedup": 61.5,
        "nn_linear_speedup": 123.4, "bf16_speedup": 12.3, "dense_wins": False, "torch_sparse_ms": 9e4, "mkl_ms": None,
        "scipy_ms": None,
    }  # fmt: skip
    [table] = bench_tables([record])
    lines = printed(table).splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= 100
    assert "61.5x products alone" in lines[-1]
