from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pollard.errors import InvalidInput
from pollard.report.comparison import difference_rows, difference_table, differences
from pollard.report.render import texts
from pollard.report.significance import Interval, half_width, paired


def test_half_of_the_interval_of_three_values_by_hand():
    # Values 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 over 2 is 7; the quantile of t at 0.975 with two degrees is 4.3027.
    assert half_width([1, 2, 6]) == pytest.approx(4.3027 * math.sqrt(7 / 3), rel=1e-4)
    assert half_width([5, 5, 5]) == 0


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]], ids=len)
def test_fewer_than_three_values_have_no_interval(values):
    assert half_width(values) is None


def test_a_paired_difference_by_hand():
    """Differences 1, 2, 3 %: mean 2, deviation 1, t = 2 sqrt(3) = 3.4641 with two degrees: p = 1 - t / sqrt(t^2 + 2) = 0.0742."""
    found = paired("a", "b", 0.1, {0: 0.91, 1: 0.92, 2: 0.93}, {0: 0.9, 1: 0.9, 2: 0.9})
    assert found.by_seed == pytest.approx((0.01, 0.02, 0.03))
    assert found.mean == pytest.approx(0.02)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-6)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert found.student == pytest.approx((0.02 - half, 0.02 + half), rel=1e-5)
    assert found.student.holds(0)
    assert found.told == "+2.00 ± 2.48"
    # Of 27 equally likely draws one has mean 1 and three have mean 4/3: 2.5 % of them lie below the former.
    assert found.bootstrap == pytest.approx((0.01, 0.03))


def test_what_all_seeds_share_is_taken_out():
    """Seeds far apart, the difference the same in each but for a little: unpaired it would drown."""
    first, second = {0: 0.10, 1: 0.50, 2: 0.90}, {0: 0.11, 1: 0.511, 2: 0.909}
    found = paired("a", "b", 0.1, second, first)
    assert not found.student.holds(0)
    assert found.told.endswith("*")
    assert stats.ttest_ind(list(second.values()), list(first.values())).pvalue > 0.9
    assert found.p < 0.01


def test_only_seeds_of_both_count_and_two_are_too_few():
    found = paired("a", "b", 0.1, {0: 0.5, 1: 0.6, 7: 0.1}, {1: 0.5, 0: 0.5, 3: 0.9})
    assert found.seeds == (0, 1)
    assert (found.student, found.bootstrap, found.p) == (None, None, None)
    assert found.told == "+5.00 (n = 2)"


def test_differences_that_do_not_differ_have_no_test():
    found = paired("a", "b", 0.1, dict.fromkeys(range(3), 0.75), dict.fromkeys(range(3), 0.5))
    assert found.student == found.bootstrap == Interval(0.25, 0.25)
    assert found.p is None


def test_the_interval_of_three_seeds_holds_the_truth_as_often_as_it_says():
    """95 of 100, within five standard deviations of 2000 draws; a bootstrap's percentiles do not."""
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    held = np.mean([abs(values.mean()) <= half_width(values) for values in draws])
    assert abs(held - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)
    few = [paired("a", "b", 0.1, dict(enumerate(values)), dict.fromkeys(range(3), 0.0)) for values in draws[:200]]
    assert np.mean([one.bootstrap.holds(0.0) for one in few]) < 0.87


def points(**series):
    """A point a seed of each series and density."""
    return [
        {"label": label, "density": density, "seed": seed, "test_accuracy": accuracy}
        for label, by_density in series.items()
        for density, accuracies in by_density.items()
        for seed, accuracy in enumerate(accuracies)
    ]


STUDY = points(
    dense={1.0: [0.9, 0.9, 0.9]}, snip={0.1: [0.8, 0.81, 0.82], 0.05: [0.5, 0.6, 0.7]}, late={0.1: [0.85, 0.86, 0.88]}
)


def test_every_pair_is_compared_where_both_are_and_a_dense_series_everywhere():
    found = [(one.label, one.against, one.density) for one in differences(STUDY)]
    assert found == [("snip", "dense", 0.1), ("snip", "dense", 0.05), ("late", "dense", 0.1), ("late", "snip", 0.1)]
    assert [one.label for one in differences(STUDY, "snip")] == ["dense", "dense", "late"]
    assert differences(points(a={1.0: [0.5]}, b={1.0: [0.7]}))[0].mean == pytest.approx(0.2)


def test_series_that_share_no_seed_are_not_compared():
    apart = [{**point, "seed": point["seed"] + 10 * (point["label"] == "late")} for point in STUDY]
    assert {(one.label, one.against) for one in differences(apart)} == {("snip", "dense")}


def test_the_table_sets_all_beside_one():
    columns, rows = texts(difference_table(STUDY, "snip"))
    assert columns == ["", "10 %", "5 %"]
    assert rows == [["dense", "+9.00 ± 2.48 *", "+30.00 ± 24.84 *"], ["late", "+5.33 ± 1.43 *", ""]]
    assert "there are 3" in str(difference_table(STUDY, "snip").title)
    with pytest.raises(InvalidInput, match="one of dense, snip, late"):
        difference_table(STUDY, "snap")


def test_rows_are_flat_and_hold_what_there_is():
    *_, last = difference_rows(STUDY)
    assert list(last) == [
        "label", "against", "density", "n", "difference",
        "student_low", "student_high", "bootstrap_low", "bootstrap_high", "p",
    ]  # fmt: skip
    assert last["student_low"] < last["bootstrap_low"] < last["difference"] < last["bootstrap_high"]
    (single,) = difference_rows(points(a={0.1: [0.5]}, b={0.1: [0.5]}))
    assert (single["n"], single["student_low"], single["p"]) == (1, None, None)
