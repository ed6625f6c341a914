"""Writes docs/weights.md from the claims of tests/composites, whose tests fail where it is not true."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from composites.page import page  # noqa: E402  the tests are not a package

if __name__ == "__main__":
    (ROOT / "docs" / "weights.md").write_text(page(), encoding="utf-8")
