"""The coverage ratchet: pytest fails under the floor in pyproject.toml; this says when the floor can be raised."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

SLACK = 1.0  # per cent: a floor raised at every tenth would be a line in every change


def verdict(covered: float, floor: float) -> str:
    """What to do about `covered` per cent of lines and branches with a floor of `floor` per cent.

    >>> verdict(93.4, 90)
    'Coverage is 93.4 %, the floor is 90 %: raise fail_under in pyproject.toml to 93.'
    >>> verdict(91.0, 90)
    'Coverage is 91.0 %, the floor is 90 %.'
    """
    advice = f": raise fail_under in pyproject.toml to {math.floor(covered)}" if covered - floor > SLACK else ""
    return f"Coverage is {covered:.1f} %, the floor is {floor:g} %{advice}."


def main() -> None:
    """Print the verdict on coverage.json and pyproject.toml of the folder this is run in."""
    coverage = json.loads(Path("coverage.json").read_text(encoding="utf-8"))
    settings = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    print(verdict(coverage["totals"]["percent_covered"], settings["tool"]["coverage"]["report"]["fail_under"]))


if __name__ == "__main__":
    main()
