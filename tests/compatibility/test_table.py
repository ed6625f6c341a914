"""Each piece of torch and its libraries does with each method what docs/compatibility.md says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatibility.page import page, pieces
from compatibility.piece import Piece, Refused, told
from compatibility.trial import METHODS
from pollard.errors import InvalidInput

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


@pytest.mark.parametrize("name", pieces())
def test_a_piece_does_what_the_table_says(name):
    piece = pieces()[name]
    assert {method: piece.outcome(method) for method in METHODS} == piece.expected()


def test_the_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python scripts/compatibility_page.py"


def test_the_table_is_wide():
    assert len(pieces()) >= 30


def refusing(error, **refused):
    def attempt(method):
        if error is not None:
            raise error

    return Piece("", "", attempt, refused)


WRONG = InvalidInput("a", "b", "Call densify_.")


def test_an_outcome_that_nobody_expects_is_told():
    assert refusing(None).outcome("set") == "works"
    assert refusing(None, set=Refused("densify_", "")).outcome("set") == "works"
    assert refusing(WRONG).outcome("set") == told(WRONG)
    assert refusing(WRONG, set=Refused("densify_", "")).outcome("set") == "refused"
    assert refusing(WRONG, set=Refused("another", "")).outcome("set") == told(WRONG)
    assert refusing(ValueError("densify_"), set=Refused("densify_", "")).outcome("set").startswith("ValueError")


def test_what_an_error_was_raised_from_counts():
    around = RuntimeError("export failed")
    around.__cause__ = WRONG
    assert refusing(around, rigl=Refused("densify_", "")).outcome("rigl") == "refused"
