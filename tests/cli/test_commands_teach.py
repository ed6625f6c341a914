"""Every command explains itself, and what it explains is true."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from pollard.cli import COMMANDS, app
from pollard.recipes import Recipe

WIDE = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}


def help_of(*words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], env=WIDE)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_first_page_names_every_command():
    page = help_of()
    assert [name for name in COMMANDS if name not in page] == []
    assert "pollard train" in page


@pytest.mark.parametrize("words", [(name,) for name in COMMANDS if name != "data"] + [("data", "get")], ids=" ".join)
def test_a_command_shows_an_example_and_offers_json(words):
    page = help_of(*words)
    assert f"pollard {' '.join(words)}" in page.split("Usage:")[1].split("\n", 1)[1]
    assert "--json" in page


@pytest.mark.parametrize("name", ["list", "get", "path"])
def test_data_has_three_commands(name):
    assert f" {name} " in help_of("data")
    assert "--json" in help_of("data", name)


def test_train_has_an_option_for_every_field_of_a_recipe():
    page = help_of("train")
    for entry in fields(Recipe):
        assert f"--{entry.name.replace('_', '-')}" in page
        assert entry.metadata["help"][:40] in page


def test_defaults_are_shown():
    page = help_of("train")
    assert f"[default: {Recipe().density}]" in page
    assert f"[default: {Recipe().model}]" in page


def test_help_does_not_wait_for_torch():
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pollard.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\nprint('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_python_dash_m_is_the_command():
    found = subprocess.run([sys.executable, "-m", "pollard", "--help"], capture_output=True, text=True, check=True)
    assert "pollard train" in found.stdout
