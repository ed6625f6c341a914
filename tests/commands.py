"""Commands, run in the process of the tests."""

from __future__ import annotations

from typer.testing import CliRunner

from pollard.cli import app


def invoke(*words: str):
    """What a command that goes well says."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.stderr
    return result
