"""Every error is drawn in the tree, and every raise says what was got, what was expected and what to do next."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest

from pollard import errors

SOURCE = Path(errors.__file__).parent
ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
TEACHING = {error.__name__ for error in ERRORS if issubclass(error, errors.PollardError)}

# Python's own protocols ask for these by name; everything else a user can meet is a PollardError.
PROTOCOL = {"AttributeError", "KeyError", "NotImplementedError", "StopIteration", "SystemExit", "KeyboardInterrupt"}


def raises() -> list[tuple[str, ast.Call]]:
    """Every `raise Name(...)` in the library, with the place it stands at."""
    return [
        (f"{path.relative_to(SOURCE)}:{node.lineno}", node.exc)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    ]


@pytest.mark.parametrize("error", ERRORS)
def test_the_tree_draws_every_error(error):
    drawn = [line for line in errors.__doc__.splitlines() if error.__name__ in line.split()]
    assert len(drawn) == 1
    parents = [base.__name__ for base in error.__bases__ if not issubclass(base, errors.PollardError)]
    if len(error.__bases__) > 1:
        assert f"({', '.join(parents)})" in drawn[0]


@pytest.mark.parametrize("error", [error for error in ERRORS if issubclass(error, errors.PollardError)])
def test_an_error_keeps_its_three_parts(error):
    raised = error("density 0", "a density in (0, 1]", "Pass 1.0.")
    assert (raised.got, raised.expected, raised.fix) == ("density 0", "a density in (0, 1]", "Pass 1.0.")
    assert str(raised) == "got density 0; expected a density in (0, 1]. Pass 1.0."


def test_no_bare_builtin_is_raised():
    builtin = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert [(place, call.func.id) for place, call in raises() if call.func.id in builtin - PROTOCOL] == []


def test_every_raise_gives_three_parts():
    teaching = [(place, call) for place, call in raises() if call.func.id in TEACHING]
    assert teaching, "the walk found no raise at all: it looks in the wrong place"
    assert [place for place, call in teaching if len(call.args) + len(call.keywords) != 3] == []


def test_a_literal_next_step_is_a_sentence():
    fixes = [(place, call.args[2].value) for place, call in raises() if call.func.id in TEACHING and constant_fix(call)]
    assert [(place, fix) for place, fix in fixes if " " not in fix or not fix.endswith((".", "?"))] == []


def constant_fix(call: ast.Call) -> bool:
    return len(call.args) == 3 and isinstance(call.args[2], ast.Constant)
