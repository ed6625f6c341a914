"""What is chosen is chosen on held-out examples: test data have no say."""

from __future__ import annotations

import random

import pytest

from pollard.report.choice import choice_table, choices, validation_tables
from pollard.report.render import texts


def a_point(setting, validation, test, *, series="SNIP", density=0.1, seed=0):
    label = f"{series}, lr {setting}" if setting else series
    named = {"series": series, "label": label, "density": density, "seed": seed}
    return {**named, "test_accuracy": test, "validation_accuracy": validation}


POINTS = [
    *(a_point(0.1, 0.80 + 0.01 * seed, 0.70 + 0.01 * seed, seed=seed) for seed in range(3)),
    *(a_point(0.2, 0.79 + 0.01 * seed, 0.99, seed=seed) for seed in range(3)),
    *(a_point(0.1, 0.5, 0.6, density=0.05, seed=seed) for seed in range(3)),
    *(a_point(0.2, 0.6, 0.5, density=0.05, seed=seed) for seed in range(3)),
    a_point("", 0.9, 0.9, series="dense", density=1.0),
]


def test_the_highest_mean_on_held_out_examples_is_chosen_of_each_series_and_density():
    first, second = choices(POINTS)
    assert (first.label, first.density, first.candidates) == ("SNIP, lr 0.1", 0.1, 2)
    assert (first.validation.mean, first.test.mean) == pytest.approx((0.81, 0.71))
    assert first.test.count == 3
    assert (second.label, second.density) == ("SNIP, lr 0.2", 0.05)


def test_no_test_accuracy_changes_a_choice():
    draw = random.Random(0)
    others = [{**point, "test_accuracy": draw.random()} for point in POINTS]
    assert [one.label for one in choices(others)] == [one.label for one in choices(POINTS)]


def test_of_equal_settings_the_first_is_chosen():
    assert [one.label for one in choices([a_point(lr, 0.5, lr) for lr in (0.3, 0.1, 0.2)])] == ["SNIP, lr 0.3"]


def test_settings_are_compared_over_the_seeds_that_all_of_them_have():
    under_way = [*POINTS[:2], a_point(0.2, 0.79, 0.99), a_point(0.2, 0.99, 0.99, seed=7)]
    (found,) = choices(under_way)
    assert (found.label, found.candidates, found.test.count) == ("SNIP, lr 0.1", 2, 1)
    assert choices([a_point(0.1, 0.8, 0.8, seed=0), a_point(0.2, 0.9, 0.9, seed=1)]) == []


def test_without_held_out_examples_there_is_nothing_to_choose_by():
    unsaid = [{**point, "validation_accuracy": None} for point in POINTS]
    assert choices(unsaid) == []
    assert validation_tables(unsaid) == []
    older = [{name: value for name, value in point.items() if name != "validation_accuracy"} for point in POINTS]
    assert validation_tables(older) == []
    mixed = [*POINTS[:3], *unsaid[3:]]
    assert choices(mixed) == [], "a setting without held-out examples does not compete"
    assert len(validation_tables(mixed)) == 1


def test_series_of_one_setting_have_nothing_to_choose():
    accuracies, chosen = validation_tables(POINTS)
    assert "dense" in texts(accuracies)[1][-1]
    assert texts(chosen) == (["", "10 %", "5 %"], [["SNIP", "lr 0.1: 71.00 ± 2.48", "lr 0.2: 50.00 ± 0.00"]])
    assert [str(each.title).split("\n")[0] for each in (accuracies, chosen)] == [
        "validation accuracy in percent by fraction kept",
        "chosen by validation accuracy, and its test accuracy in percent",
    ]
    apart = [*POINTS, *(a_point(lr, lr, 0.5, series="GraSP", density=0.02) for lr in (0.1, 0.2))]
    assert texts(choice_table(apart))[1][-1] == ["GraSP", "", "", "lr 0.2: 50.00"]


def test_points_of_before_are_of_the_series_that_their_label_says():
    older = [{name: value for name, value in point.items() if name != "series"} for point in POINTS]
    assert choices(older) == []
