"""A process that ends when the one that started it does, however that ends: what it was doing is to be taken up again."""

from __future__ import annotations

import os
import threading
import time

EVERY = 0.5


def end_with_parent(parent: int) -> None:
    """Watch from a thread whether process `parent` is still this one's, and exit at once when it is not.

    The parent says its own number: asked here, it could be gone already, and whoever took its place be watched.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
