from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from pollard.report.accuracy import Spread, accuracy_table, cells, csv_text, densities, labels, markdown_table
from pollard.report.correlation import AIMS, correlation_table, correlations, rank_correlation


def point(label, density, seed, accuracy, **more):
    return {"label": label, "method": "snip", "density": density, "seed": seed, "test_accuracy": accuracy} | more


POINTS = [
    point("dense", 1.0, 0, 0.98),
    point("SNIP", 0.1, 0, 0.9),
    point("SNIP", 0.1, 1, 0.92),
    point("SNIP", 0.05, 0, 0.8),
    point("late", 0.1, 0, 0.95),
]


def test_a_cell_is_the_mean_over_seeds_and_its_interval():
    found = cells([*POINTS, point("SNIP", 0.1, 2, 0.94)])
    assert found["SNIP", 0.1].mean == pytest.approx(0.92)
    assert found["SNIP", 0.1].half == pytest.approx(4.3027 * 0.02 / math.sqrt(3), rel=1e-4)
    assert found["SNIP", 0.05].count == 1
    assert found["SNIP", 0.05].half is None
    assert ("late", 0.05) not in found
    assert Spread.of([0.5]).percent() == "50.00"


def test_rows_are_series_in_order_and_columns_densities_from_dense_to_sparse():
    assert labels(POINTS) == ["dense", "SNIP", "late"]
    assert densities(POINTS) == [1.0, 0.1, 0.05]
    table = accuracy_table(POINTS, "A study")
    assert [str(column.header) for column in table.columns] == ["n = 1 to 2: no interval", "100 %", "10 %", "5 %"]
    assert list(table.columns[2].cells) == ["", "91.00", "95.00, n = 1"]
    assert str(accuracy_table([], "A study").columns[0].header) == "no run is finished"


def test_a_table_says_of_how_many_seeds_it_is_and_where_there_are_too_few():
    table = accuracy_table([*POINTS, point("SNIP", 0.1, 2, 0.94)], "A study")
    assert str(table.columns[0].header) == "± 95 %, n = 1 to 3"
    assert list(table.columns[2].cells) == ["", "92.00 ± 4.97", "95.00, n = 1"]
    alike = [point("SNIP", 0.1, seed, 0.9 + seed / 100) for seed in range(3)]
    assert markdown_table(alike).splitlines()[0] == "| ± 95 %, n = 3 | 10 % |"


def test_markdown_sets_published_figures_beside_ours():
    published = [{"label": "SNIP", "density": 0.05, "test_accuracy": 0.984, "source": "a paper"}]
    lines = markdown_table(POINTS, published).splitlines()
    assert lines[0] == "| n = 1 to 2: no interval | 100 % | 10 % | 5 % |"
    assert lines[3] == "| SNIP |  | 91.00 | 80.00, n = 1 (98.40) |"


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
    assert {density: each.value for density, each in found["loss"].by_density.items()} == {
        0.1: pytest.approx(-1),
        0.05: pytest.approx(1),
    }
    # By hand: ranks of the losses 4 3 2 1 5 6 7 8 against those of accuracies 5 6 7 8 1 2 3 4.
    assert found["loss"].overall.value == pytest.approx(1 - 6 * sum([1, 9, 25, 49, 16, 16, 16, 16]) / (8 * 63))
    assert math.isnan(found["gradient_norm"].overall.value)  # all equal
    assert math.isnan(found["trainability"].overall.value)  # not measured
    assert found.keys() == AIMS.keys()


def test_dense_points_and_too_few_points_correlate_with_nothing():
    dense = [point("dense", 1.0, seed, 0.5 + seed / 9, trainability=seed / 9) for seed in range(5)]
    assert all(math.isnan(one.overall.value) for one in correlations(dense))
    assert math.isnan(correlations(aimed([1, 2, 3], [0.1, 0.2, 0.3]))[0].overall.value)


def test_the_table_of_correlations_says_which_way_is_better():
    table = correlation_table(aimed([4, 3, 2, 1], [0.1, 0.2, 0.3, 0.9]))
    assert [str(column.header) for column in table.columns] == ["n = 1 series", "better", "all", "10 %"]
    assert [next(iter(column.cells)) for column in table.columns] == [
        "loss right after pruning",
        "lower",
        "-1.00",
        "-1.00",
    ]
    assert list(table.columns[2].cells)[-1] == "-"


def clustered(spread, series=11, seeds=3):
    """Series whose runs lie close together: of three runs each, or of one."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(series, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    return [
        point(f"series {index}", 0.1, seed, float(b), aims={"loss": float(a)})
        for index, centre in enumerate(centres)
        for seed, (a, b) in enumerate(centre + spread * draw.normal(size=(seeds, 2)))
    ]


def test_a_correlation_is_that_of_scipy_and_its_interval_that_of_series_drawn_anew():
    points = clustered(0.3)
    found = rank_correlation(points, "loss")
    by_series = {label: [p for p in points if p["label"] == label] for label in labels(points)}
    draw, values = np.random.default_rng(1), []
    for _ in range(1000):
        drawn = [p for index in draw.integers(11, size=11) for p in by_series[f"series {index}"]]
        values.append(spearmanr([p["aims"]["loss"] for p in drawn], [p["test_accuracy"] for p in drawn]).statistic)
    slow = spearmanr([p["aims"]["loss"] for p in points], [p["test_accuracy"] for p in points]).statistic
    assert found.value == pytest.approx(slow)
    assert found.series == 11
    assert found.interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.06)


def test_repeating_runs_of_a_series_does_not_narrow_the_interval():
    """Thirty-three runs that are eleven methods tell what eleven runs do."""
    width = {
        (spread, seeds): np.ptp(rank_correlation(clustered(spread, seeds=seeds), "loss").interval)
        for spread, seeds in ((0.0, 1), (0.0, 3))
    }
    assert width[0.0, 3] == pytest.approx(width[0.0, 1], rel=0.1)


def test_fewer_than_three_series_or_a_draw_of_equal_points_have_no_interval():
    assert rank_correlation(clustered(0.3, series=2), "loss").interval is None
    flat = [point(f"series {index}", 0.1, 0, 0.5 + (index == 4), aims={"loss": index}) for index in range(5)]
    found = rank_correlation(flat, "loss")
    assert found.interval is None  # without the last there is nothing to rank
    assert found.told == "+0.71"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(start):
    point = {"label": start + "cmd()", "aims": {start + "x": -0.5}, "seed": -1}
    (row,) = csv.DictReader(io.StringIO(csv_text([point]), newline=""))
    told = start.replace("\r", " ")
    assert row["label"] == f"'{told}cmd()"
    assert row[f"aims.{told}x"] == "-0.5"
    assert row["seed"] == "-1"
