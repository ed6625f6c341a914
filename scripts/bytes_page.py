"""Writes docs/bytes.md, counted by tests/held_bytes.py; the tests fail where it is not true."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from held_bytes import page  # noqa: E402  the tests are not a package

if __name__ == "__main__":
    torch.set_num_threads(1)
    (ROOT / "docs" / "bytes.md").write_text(page(), encoding="utf-8")
