"""What several threads want at once and one of them makes: kernels, choices, tables. Multiplying itself waits for nobody."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from pollard.errors import PollardWarning

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

# One lock for all of it: who measures must not be disturbed by who compiles, and locks that are one cannot wait for each
# other. Reentrant, since measuring a choice compiles its kernel. A fork waits until it is free: a child that inherited it
# held, by a thread that it did not inherit, would wait for ever, and what was half made would stay so.
MAKING = threading.RLock()
os.register_at_fork(before=MAKING.acquire, after_in_parent=MAKING.release, after_in_child=MAKING.release)

_told: set[str] = set()


def one_at_a_time(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """`make`, entered by one thread at a time, of all that is so marked."""

    @wraps(make)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        with MAKING:
            return make(*args, **kwargs)

    return alone


@one_at_a_time
def warn_once(message: str, category: type[PollardWarning]) -> None:
    """Warn, the first time that this process has this to say."""
    if message not in _told:
        warnings.warn(message, category, stacklevel=5)
        _told.add(message)
