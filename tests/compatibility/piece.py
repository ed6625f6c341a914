"""A piece of torch or of a library, and what became of it with each method: it works, or is refused with a reason."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from compatibility.trial import METHODS
from pollard.errors import PollardError

Try = Callable[[str], None]


@dataclass(frozen=True)
class Refused:
    """Refused with an error whose message has `says`: a PollardError, or torch's own where torch is what refuses.

    reason: what the page says.
    """

    says: str
    reason: str
    by: type[Exception] = PollardError

    def __str__(self) -> str:
        return "refused"

    def outcome(self, error: Exception) -> str:
        """`refused` if `error`, or what it was raised from, is what is expected; else what it says."""
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, self.by) and re.search(self.says, str(chain)):
                return str(self)
            chain = chain.__cause__
        return told(error)


@dataclass(frozen=True)
class Piece:
    """`attempt` takes a method's name and fails unless the numbers are right.

    refused: by which methods, and why; one that is not named works. note: what a reader should know.
    ignored: warnings of a library about itself, as message patterns, each with its category.
    """

    family: str
    name: str
    attempt: Try
    refused: dict[str, Refused] = field(default_factory=dict)
    note: str = ""
    ignored: tuple[tuple[str, type[Warning]], ...] = ()

    def expected(self) -> dict[str, str]:
        return {method: str(self.refused.get(method, "works")) for method in METHODS}

    def outcome(self, method: str) -> str:
        """What happens: works, refused, or what went wrong."""
        try:
            with warnings.catch_warnings():
                for message, category in self.ignored:
                    warnings.filterwarnings("ignore", message, category)
                self.attempt(method)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the outcome
            return self.refused[method].outcome(error) if method in self.refused else told(error)
        return "works"


PIECES: dict[str, Piece] = {}


def told(error: Exception) -> str:
    """An error as an outcome that nothing expects."""
    return f"{type(error).__name__}: {error}"


def piece(
    family: str,
    name: str,
    *,
    refused: Refused | dict[str, Refused] | None = None,
    note: str = "",
    ignored: tuple[tuple[str, type[Warning]], ...] = (),
) -> Callable[[Try], Try]:
    """Put what is decorated into the table; a single `refused` is that of all methods."""
    each = dict.fromkeys(METHODS, refused) if isinstance(refused, Refused) else refused or {}

    def register(attempt: Try) -> Try:
        PIECES[name] = Piece(family, name, attempt, each, note, ignored)
        return attempt

    return register
