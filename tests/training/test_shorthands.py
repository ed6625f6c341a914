"""The shorthands of methods say what they take, to people and to type checkers."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pollard
from pollard.training import shorthands
from pollard.training.methods import METHODS
from pollard.training.methods.method import Method, method, options_of

ROOT = Path(__file__).parents[2]
SNIPPET = """\
import torch
from torch import nn

import pollard

model = nn.Sequential(nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
sparse: pollard.Sparsifier = pollard.rigl(model, optimizer, density=0.1, steps=10, every=5, pattern="v4", layers="0")
pollard.gse(model, optimizer, density=0.1, steps=10, guide="graest", storage="masked")
pollard.set_(model, optimizer, density=0.1, steps=10, epoch=5)
pollard.rigl(model, optimizer, density=0.1, steps=10, evry=5)
pollard.gmp(model, optimizer, density="0.1", steps=10)
pollard.gse(model, optimizer, density=0.1, steps=10, guide="grasp")
pollard.static(model, optimizer, density=0.1, steps=10, every=5)
pollard.rigl(model, density=0.1, steps=10)
"""
WRONG = {11: "evry", 12: "density", 13: "guide", 14: "every", 15: "optimizer"}


@pytest.mark.parametrize("name", METHODS)
def test_a_signature_holds_the_methods_own_options_with_their_defaults(name):
    function = getattr(pollard, METHODS[name].__name__)
    parameters = inspect.signature(function).parameters
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    own = options_of(METHODS[name])
    # An allocation of the method's own stands for None.
    assert {key: parameters[key].default for key in own if key != "allocation"} == {
        key: default for key, default in own.items() if key != "allocation"
    }
    assert list(parameters)[:4] == ["model", "optimizer", "density", "steps"]


def test_every_method_has_its_shorthand():
    names = {builder.__name__ for builder in METHODS.values()}
    assert names == set(dir(shorthands))
    assert names <= set(dir(pollard))
    assert all(getattr(pollard, name) is getattr(shorthands, name) for name in names)
    for module in (pollard, shorthands):
        with pytest.raises(AttributeError, match="no attribute 'lottery'"):
            module.lottery  # noqa: B018 - asking is what is tried


def test_a_method_that_is_registered_is_there_at_once():
    @method
    def lottery(density, steps, *, every=5):
        """Draw lots."""
        del density
        return Method(name="lottery", cite="", every=every, end=steps)

    try:
        assert list(inspect.signature(pollard.lottery).parameters)[:5] == [
            "model",
            "optimizer",
            "density",
            "steps",
            "every",
        ]
        model = nn.Sequential(nn.Linear(8, 4))
        sparse = pollard.lottery(model, torch.optim.SGD(model.parameters(), 0.1), density=0.5, steps=10, every=3)
        assert (sparse.method.name, sparse.method.every) == ("lottery", 3)
    finally:
        METHODS.pop("lottery")
    assert not hasattr(pollard, "lottery")


def test_the_stub_is_what_the_script_writes(tmp_path):
    # In a process of its own: it looks for names in all modules that are there.
    made = subprocess.run(
        [sys.executable, "-c", "from stub import stub; print(stub(), end='')"],
        cwd=ROOT / "scripts", env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert (ROOT / "src/pollard/training/shorthands.pyi").read_text("utf-8") == made, "run scripts/stub.py"


def test_a_strict_type_checker_finds_what_is_misspelt(tmp_path):
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    # With the project's own settings, so that what `make types` has found out need not be found out again.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", snippet],
        cwd=ROOT, env={"MYPYPATH": str(ROOT / "src"), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line.partition("snippet.py:")[2] for line in done.stdout.splitlines()]
    errors = [line for line in lines if " error: " in line]
    assert [int(line.split(":")[0]) for line in errors] == list(WRONG), done.stdout + done.stderr
    assert all(word in line for word, line in zip(WRONG.values(), errors, strict=True)), done.stdout


def test_a_name_that_is_nearly_right_is_suggested():
    ran = subprocess.run(
        [sys.executable, "-c", "import pollard; pollard.set"], capture_output=True, text=True, check=False
    )
    assert "Did you mean: 'set_'?" in ran.stderr
