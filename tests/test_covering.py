"""The sample of a large matrix: every pair of values, few cases, and nothing of a test that is not marked."""

from __future__ import annotations

from itertools import combinations, product
from types import SimpleNamespace

import hypothesis

from covering import covering, sampled

SIZES = {"isa": 2, "pattern": 5, "dtype": 4, "batch": 6}
MATRIX = [dict(zip(SIZES, case, strict=True)) for case in product(*map(range, SIZES.values()))]


def pairs(cases):
    return {pair for case in cases for pair in combinations(case.items(), 2)}


def test_every_pair_is_in_a_case_and_few_cases_are_needed():
    taken = [MATRIX[place] for place in covering(MATRIX)]
    assert pairs(taken) == pairs(MATRIX)
    assert 5 * 6 <= len(taken) <= 36
    assert len(MATRIX) == 240


def test_the_pairs_are_those_that_there_are():
    cases = [case for case in MATRIX if case["pattern"] != case["batch"]]
    assert pairs(cases[place] for place in covering(cases)) == pairs(cases)


def test_of_a_single_axis_and_of_two_all_is_taken():
    assert covering([{"batch": size} for size in range(7)]) == list(range(7))
    assert covering([{"batch": size, "isa": isa} for size in range(3) for isa in range(2)]) == list(range(6))
    assert covering([]) == []


def items(name, marked):
    return [
        SimpleNamespace(
            nodeid=f"{name}[{number}]",
            callspec=SimpleNamespace(params=case),
            get_closest_marker=lambda mark: marked and mark == "pairwise",
        )
        for number, case in enumerate(MATRIX)
    ]


def test_only_what_is_marked_is_sampled_each_test_by_itself():
    first, second, whole = items("first", marked=True), items("second", marked=True), items("whole", marked=False)
    kept, left_out = sampled([*first, *whole, *second])
    count = len(covering(MATRIX))
    assert [each.nodeid.partition("[")[0] for each in kept] == ["first"] * count + ["whole"] * 240 + ["second"] * count
    assert len(kept) + len(left_out) == 3 * 240


def test_the_thorough_profile_runs_all(request):
    conftest = request.config.pluginmanager.get_plugin(str(request.config.rootpath / "conftest.py"))
    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: None))
    before, found = hypothesis.settings.get_current_profile_name(), items("one", marked=True)
    try:
        for profile, count in (("thorough", 240), ("ci", len(covering(MATRIX)))):
            hypothesis.settings.load_profile(profile)
            conftest.pytest_collection_modifyitems(config, found)
            assert len(found) == count
    finally:
        hypothesis.settings.load_profile(before)
