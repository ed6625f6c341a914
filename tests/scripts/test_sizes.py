"""The size ledger counts what it says, and fails where a limit is passed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "sizes.py"


def ledger(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, cwd=folder)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def function(lines: int, docstring: int = 0) -> str:
    """A function of `lines` lines, the first being its name, and a docstring of `docstring` lines more."""
    quoted = ['    """' + "\n" * (docstring - 1) + '"""'] if docstring else []
    return "\n".join(["def long():", *quoted, *["    pass"] * (lines - 1)]) + "\n"


@pytest.mark.parametrize("top, limit", [("src/pollard/formats", 400), ("tests", 600), ("scripts", 400)])
@pytest.mark.parametrize("excess", [0, 1])
def test_a_file_may_have_so_many_lines(tmp_path, top, limit, excess):
    write(tmp_path / top / "module.py", "x = 1\n" * (limit + excess))
    done = ledger(tmp_path)
    assert done.returncode == excess
    assert f"{limit + excess}  {top}" in done.stdout
    assert (f"{top}/module.py has {limit + 1} lines, the limit is {limit}" in done.stderr) == bool(excess)


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("docstring", [0, 1, 30])
def test_a_function_is_measured_without_its_docstring(tmp_path, docstring, excess):
    write(tmp_path / "src" / "pollard" / "module.py", function(60 + excess, docstring))
    done = ledger(tmp_path)
    assert done.returncode == excess
    assert f"{60 + excess}  src/pollard/module.py:1 long" in done.stdout
