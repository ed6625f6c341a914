"""Errors are three lines on standard error and exit code 2; a traceback only for those who ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pollard.cli import app, doctor, explain
from pollard.errors import DataError, KernelError

LABELS = ["got:", "expected:", "next step:"]


def labels(text: str) -> list[str]:
    return [line[: len(label)] for line, label in zip(text.splitlines(), LABELS, strict=True)]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--density", "0"],
        ["train", "--model", "resnet"],
        ["train", "--precision", "bf16"],
        ["train", "--recipe", "nowhere.toml"],
        ["train", "--out", "/dev/null"],
        ["prune", "--method", "dense"],
        ["prune", "--pattern", "v3"],
        ["prune", "--save", "no/such/folder/plan"],
        ["bench", "--shape", "64x64"],
        ["bench", "--shape", "64x64x0"],
        ["bench", "--shape", "64x64x8", "--density", "none"],
        ["bench", "--shape", "64x64x8", "--density", "1.5"],
        ["bench", "--shape", "64x64x8", "--op", "backward"],
        ["bench", "--shape", "62x64x8", "--pattern", "v4"],
        ["bench", "--shape", "64x64x8", "--threads", "0"],
        ["bench", "--shape", "64x64x8", "--optimizer", "lion"],
        ["bench", "--shape", "64x64x8", "--pattern", ","],
        ["bench", "--step-network", "64"],
        ["data", "get", "imagenet"],
        ["explain", "64"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_three_lines(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert labels(result.stderr) == LABELS


def test_json_keeps_standard_output_empty_on_an_error():
    result = CliRunner().invoke(app, ["data", "get", "imagenet", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("words", [["--debug", "data", "get", "imagenet"], ["data", "get", "imagenet", "--debug"]])
def test_debug_may_stand_anywhere_and_lets_the_traceback_through(words):
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, DataError)
    assert "next step" not in result.stderr


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 130
    assert "same command again" in result.stderr


def test_an_instruction_set_this_machine_lacks_is_an_error_too(monkeypatch):
    def refused(*_, **__):
        raise KernelError("POLLARD_TARGET=neon", "an instruction set of this CPU", "Unset POLLARD_TARGET.")

    monkeypatch.setattr(explain, "explain_kernel", refused)
    result = CliRunner().invoke(app, ["explain", "64x64x8"])
    assert result.stderr.splitlines()[0] == "got:       POLLARD_TARGET=neon"


def test_an_unknown_option_is_a_usage_error():
    result = CliRunner().invoke(app, ["doctor", "--sparsely"])
    assert result.exit_code == 2
    assert "--sparsely" in result.stderr


def test_a_command_that_is_nearly_right_is_suggested():
    result = CliRunner().invoke(app, ["trian"])
    assert result.exit_code == 2
    assert "Did you mean 'train'?" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["data", "list"], ["data", "list", "--json"]])
def test_output_that_cannot_be_written_is_told_in_three_lines(words):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "pollard", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert labels(done.stderr) == LABELS
    assert "No space left on device" in done.stderr
