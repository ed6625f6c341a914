from __future__ import annotations

import csv
import io
import math

import pytest

from pollard.report.accuracy import Spread, accuracy_table, cells, csv_text, densities, labels, markdown_table
from pollard.report.correlation import AIMS, correlation_table, correlations


def point(label, density, seed, accuracy, **more):
    return {"label": label, "method": "snip", "density": density, "seed": seed, "test_accuracy": accuracy} | more


POINTS = [
    point("dense", 1.0, 0, 0.98),
    point("SNIP", 0.1, 0, 0.9),
    point("SNIP", 0.1, 1, 0.92),
    point("SNIP", 0.05, 0, 0.8),
    point("late", 0.1, 0, 0.95),
]


def test_a_cell_is_mean_and_sample_deviation_over_seeds():
    found = cells(POINTS)
    assert found["SNIP", 0.1].mean == pytest.approx(0.91)
    assert found["SNIP", 0.1].deviation == pytest.approx(0.02 / math.sqrt(2))
    assert found["SNIP", 0.05].count == 1
    assert math.isnan(found["SNIP", 0.05].deviation)
    assert ("late", 0.05) not in found
    assert Spread.of([0.5]).percent() == "50.00"


def test_rows_are_series_in_order_and_columns_densities_from_dense_to_sparse():
    assert labels(POINTS) == ["dense", "SNIP", "late"]
    assert densities(POINTS) == [1.0, 0.1, 0.05]
    table = accuracy_table(POINTS, "A study")
    assert [str(column.header) for column in table.columns] == ["", "100 %", "10 %", "5 %"]
    assert list(table.columns[2].cells) == ["", "91.00 ± 1.41", "95.00"]
    assert "seeds: 1 to 2" in str(table.title)
    assert "no run is finished" in str(accuracy_table([], "A study").title)


def test_markdown_sets_published_figures_beside_ours():
    published = [{"label": "SNIP", "density": 0.05, "test_accuracy": 0.984, "source": "a paper"}]
    lines = markdown_table(POINTS, published).splitlines()
    assert lines[0] == "|  | 100 % | 10 % | 5 % |"
    assert lines[3] == "| SNIP |  | 91.00 ± 1.41 | 80.00 (98.40) |"


def test_csv_has_a_line_a_point_and_nested_figures_by_their_path():
    rich = [POINTS[0] | {"aims": None}, POINTS[1] | {"aims": {"loss": 2.5}, "curve": [1, 2], "recipe": {"seed": 0}}]
    rows = list(csv.DictReader(io.StringIO(csv_text(rich))))
    assert len(rows) == 2
    assert rows[1]["aims.loss"] == "2.5"
    assert rows[0]["aims.loss"] == ""
    assert "curve" not in rows[0]
    assert "aims" not in rows[0]
    assert (rows[1]["recipe.seed"], rows[1]["seed"]) == ("0", "0")


def aimed(values, accuracies, density=0.1):
    return [
        point("SNIP", density, seed, accuracy, aims={"loss": value, "gradient_norm": 1.0})
        for seed, (value, accuracy) in enumerate(zip(values, accuracies, strict=True))
    ]


def test_correlations_are_of_ranks_over_all_and_by_density():
    points = aimed([4, 3, 2, 1], [0.1, 0.2, 0.3, 0.9]) + aimed([9, 90, 900, 9000], [0.01, 0.02, 0.03, 0.04], 0.05)
    found = {one.aim: one for one in correlations(points)}
    assert found["loss"].by_density == {0.1: pytest.approx(-1), 0.05: pytest.approx(1)}
    # By hand: ranks of the losses 4 3 2 1 5 6 7 8 against those of accuracies 5 6 7 8 1 2 3 4.
    assert found["loss"].overall == pytest.approx(1 - 6 * sum([1, 9, 25, 49, 16, 16, 16, 16]) / (8 * 63))
    assert math.isnan(found["gradient_norm"].overall)  # all equal
    assert math.isnan(found["trainability"].overall)  # not measured
    assert found.keys() == AIMS.keys()


def test_dense_points_and_too_few_points_correlate_with_nothing():
    dense = [point("dense", 1.0, seed, 0.5 + seed / 9, trainability=seed / 9) for seed in range(5)]
    assert all(math.isnan(one.overall) for one in correlations(dense))
    assert math.isnan(correlations(aimed([1, 2, 3], [0.1, 0.2, 0.3]))[0].overall)


def test_the_table_of_correlations_says_which_way_is_better():
    table = correlation_table(aimed([4, 3, 2, 1], [0.1, 0.2, 0.3, 0.9]))
    assert [str(column.header) for column in table.columns] == ["", "better", "all", "10 %"]
    assert [next(iter(column.cells)) for column in table.columns] == [
        "loss right after pruning",
        "lower",
        "-1.00",
        "-1.00",
    ]
    assert list(table.columns[2].cells)[-1] == "-"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(start):
    point = {"label": start + "cmd()", "aims": {start + "x": -0.5}, "seed": -1}
    (row,) = csv.DictReader(io.StringIO(csv_text([point]), newline=""))
    told = start.replace("\r", " ")
    assert row["label"] == f"'{told}cmd()"
    assert row[f"aims.{told}x"] == "-0.5"
    assert row["seed"] == "-1"
