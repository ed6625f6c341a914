"""A process that ends when the one that started it does, however that ends: what it was doing is to be taken up again."""

from __future__ import annotations

import os
import threading
import time

EVERY = 0.5


def end_with_parent() -> None:
    """Watch the parent of this process from a thread, and exit at once when it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
