"""The records of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[1] / "benchmarks" / "records"


def load(name: str) -> Any:
    """The content of a record."""
    return json.loads((RECORDS / name).read_text(encoding="utf-8"))
