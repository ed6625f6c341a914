"""What all methods share: counts, and the steps that have an update or look ahead to one."""

from __future__ import annotations

import pytest
import torch

from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern
from pollard.training.methods.method import Method, often, require_one_pattern, require_options, update_steps
from pollard.training.schedules import constant
from small_weights import change, small_weight

NAN = torch.nan


def made(**pieces):
    return Method(**{"name": "made", "cite": "", "every": 10, "end": 35, **pieces})


def test_a_layer_keeps_the_lesser_of_what_it_has_and_its_target_less_a_fraction():
    ten = small_weight([[1.0] * 10 + [NAN] * 10])
    for target, expected in ((10, (7, 10)), (20, (7, 20)), (6, (4, 6)), (5, (4, 5))):
        # 0.3 of 10 is 3; of 6 it is 1.8, so 2; of 5 it is 1.5, so 2, to the even, and 0.25 of 5 is 1.
        fraction = 0.25 if target == 5 else 0.3
        assert made().counts({"ten": ten}, {"ten": target}, fraction) == {"ten": expected}


def test_it_grows_to_its_target_from_what_stays():
    weight = small_weight([[1.0, 3.0, 2.0, NAN, NAN, NAN]])
    asked = []

    def grow(changed, stays, count):
        asked.append((stays.tolist(), count))
        return torch.tensor([3])

    stays, grown = made(grow=grow).exchange(change(weight, 2, 5))
    assert asked == [([False, True, True], 3)]
    assert stays.tolist() == [False, True, True]
    assert grown.tolist() == [3]


@pytest.mark.parametrize("start, updates", [(0, [10, 20, 30]), (5, [5, 15, 25, 35]), (36, [])])
def test_updates_come_from_the_start_to_the_end_both_included(start, updates):
    method = made(start=start)
    assert method.first == (start or 10)
    assert [step for step in range(60) if method.due(step)] == updates
    for step in range(60):
        assert method.next_due(step) == next((due for due in updates if due > step), None)
        assert method.last_due(step) == max((due for due in updates if due <= step), default=0)


def test_passes_are_watched_for_so_many_steps_up_to_an_update():
    assert not any(made().watches(step) for step in range(60))
    assert [step for step in range(60) if made(window=1).watches(step)] == [10, 20, 30]
    assert [step for step in range(60) if made(window=3).watches(step)] == [8, 9, 10, 18, 19, 20, 28, 29, 30]
    assert [step for step in range(1, 60) if made(window=1, dense_memory=True).watches(step)] == list(range(1, 31))


def test_a_method_asks_for_sense():
    for every in (0, -1):
        with pytest.raises(InvalidInput, match=f"an update every {every} steps"):
            made(every=every)
    assert made(every=1).every == 1
    for fraction in (0.0, 1.0):
        assert made(fraction=constant(fraction)).fraction(5) == fraction
    for fraction in (-0.01, 1.01):
        with pytest.raises(InvalidInput, match="a fraction of"):
            made(fraction=constant(fraction))
    # At the first update as well as at the beginning.
    with pytest.raises(InvalidInput, match="a fraction of"):
        made(fraction=lambda step: 2.0 if step == 10 else 0.5)


def test_a_density_that_moves_resizes_and_a_ranking_of_all_wants_one_pattern():
    assert not made().resizes
    moving = made(density=constant(0.5))
    assert moving.resizes
    mixed = {"one": Pattern.parse("v2"), "other": Pattern.parse("v4")}
    for allocation, density in (("global", None), ("erk", constant(0.5))):
        made(density=density, allocation=allocation).require(mixed)
    with pytest.raises(PatternError, match="v2, v4"):
        made(density=constant(0.5), allocation="global").require(mixed)
    require_one_pattern({"one": mixed["one"], "other": Pattern.parse("v2")})


def test_what_keeps_n_of_m_gives_nothing_away():
    fixed = {"one": Pattern.parse("v2"), "other": Pattern.parse("2:4")}
    made().require(fixed)
    with pytest.raises(PatternError, match=r"pattern 2:4 for 'other' with method .* keep more or less; .*set, rigl"):
        made(density=constant(0.5)).require(fixed)


def test_steps_between_updates():
    assert [often(7, 100, 10_000), often(0, 100, 10_000), often(0, 100, 500), often(0, 100, 3)] == [7, 100, 50, 1]
    assert [
        update_steps(7, 20, 1000),
        update_steps(0, 20, 1000),
        update_steps(0, None, 1000),
        update_steps(0, 0, 9),
    ] == [
        7,
        20,
        10,
        1,
    ]


def test_an_unknown_option_is_told_which_there_are():
    require_options("made", ["one"], iter(["one", "other"]))
    with pytest.raises(InvalidInput, match="option 'two' of method made; expected one of one, other"):
        require_options("made", ["one", "two"], ["one", "other"])
    with pytest.raises(InvalidInput, match="none: it has no options"):
        require_options("made", ["two"], [])
