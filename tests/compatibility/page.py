"""docs/compatibility.md, made of the table that the tests hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module

from compatibility.not_yet import NOT_YET
from compatibility.piece import PIECES, NotYet, Piece
from compatibility.trial import METHODS
from pollard.report.render import markdown

MODULES = ("optimizing", "transforming", "tracing", "modules", "processes", "libraries")

HEAD = """\
# What works with what

Each line is a test: a small network trained by the method (`static`, and `rigl`, `set` and `gmp` in the middle of moving their topology), and then what the
line says. *works*: the numbers are those of the same thing done by hand to dense weights under masks. *refused*: an error says so, and what to do instead, before anything is wrong.
This page is written by `scripts/compatibility_page.py` from `tests/compatibility`, which fail where it is not true.

"""


@cache
def pieces() -> dict[str, Piece]:
    """Everything that is tried, by name."""
    families = [import_module(f"compatibility.{module}").FAMILY for module in MODULES]
    assert set(NOT_YET) <= set(PIECES)
    every = sorted(PIECES.values(), key=lambda each: families.index(each.family))
    return {each.name: _open(each, NOT_YET[each.name]) if each.name in NOT_YET else each for each in every}


def _open(piece: Piece, reason: str) -> Piece:
    return replace(piece, refused=dict.fromkeys(METHODS, NotYet("", reason)))


def page() -> str:
    """The whole page."""
    every = pieces().values()
    told = [outcome for each in every for outcome in each.expected().values()]
    counts = ", ".join(f"{told.count(outcome)} {outcome}" for outcome in dict.fromkeys(told))
    parts = [HEAD, f"{len(every)} lines, {len(METHODS)} methods: {counts}.\n"]
    for family in dict.fromkeys(each.family for each in every):
        rows = [row(each) for each in every if each.family == family]
        parts.append(
            f"\n## {family}\n\n{markdown(['', *METHODS, 'why, or what to know'], rows, left=len(METHODS) + 2)}"
        )
    return "".join(parts)


def row(piece: Piece) -> list[str]:
    """One line: its name, what happens with each method, and reasons."""
    reasons = dict.fromkeys(refused.reason for refused in piece.refused.values())
    return [piece.name, *piece.expected().values(), "; ".join([*reasons, *filter(None, [piece.note])])]
