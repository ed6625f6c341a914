"""``python -m pollard`` is ``pollard``."""

from __future__ import annotations

from pollard.cli import main

if __name__ == "__main__":
    main()
