"""Large matrices of cases are sampled: as few of them as have every pair of values that the whole matrix has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest


def covering(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Which of `cases`, values by axis, have between them each pair of values of two axes that any case has.

    Greedy, the first case that adds most pairs each time: the same cases on every run. Along a single axis, all.
    """
    found = [set(combinations(sorted(case.items()), min(2, len(case)))) for case in cases]
    missing, taken = set[object]().union(*found), []
    while missing:
        taken.append(max(range(len(cases)), key=lambda case: len(found[case] & missing)))
        missing -= found[taken[-1]]
    return sorted(taken)


def sampled(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What is run of `items`, and what is left out: cases that a test marked `pairwise` does not need."""
    matrices = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairwise"):
            matrices[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    for cases in matrices.values():
        # Values need not be hashable; those of a list are the same objects in all cases.
        taken = set(covering([{axis: id(value) for axis, value in case.callspec.params.items()} for case in cases]))
        left_out |= {id(case) for place, case in enumerate(cases) if place not in taken}
    return [item for item in items if id(item) not in left_out], [item for item in items if id(item) in left_out]
