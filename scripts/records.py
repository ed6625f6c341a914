"""The records of benchmarks, and what studies came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[1] / "benchmarks" / "records"
STUDIES = Path(__file__).parents[1] / "studies"


def load(name: str) -> Any:
    """The content of a record."""
    return json.loads((RECORDS / name).read_text(encoding="utf-8"))


def points(study: str) -> list[dict[str, Any]]:
    """The committed results of a study."""
    found: list[dict[str, Any]] = json.loads((STUDIES / "results" / f"{study}.json").read_text(encoding="utf-8"))
    return found
