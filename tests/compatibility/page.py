"""docs/compatibility.md, made of the table that the tests hold."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from compatibility.piece import PIECES, Piece
from compatibility.trial import METHODS
from pollard.report.render import markdown

MODULES = ("optimizing", "loops", "transforming", "tracing", "modules", "processes", "libraries")

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
    return {each.name: each for each in sorted(PIECES.values(), key=lambda each: families.index(each.family))}


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
