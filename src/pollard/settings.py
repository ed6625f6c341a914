"""Every knob that is read from the environment, typed, in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pollard.errors import SettingsError

TARGETS = ("auto", "avx512", "avx2", "neon", "reference")
TUNING = ("measure", "default")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for.

    target: POLLARD_TARGET, the instruction set kernels are generated for; ``reference`` runs plain torch.
    tuning: POLLARD_TUNING, ``measure`` times candidate tiles once per shape, ``default`` takes the built-in choice.
    cache: POLLARD_CACHE, the folder for tuning results (default ``~/.cache/pollard``).
    data: POLLARD_DATA, the folder for fetched data sets (default ``<cache>/data``).

    >>> Settings.read({"POLLARD_TARGET": "avx2"}).target
    'avx2'
    """

    target: str
    tuning: str
    cache: Path
    data: Path

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from `environment` (default: the process environment); raises SettingsError on an unknown choice."""
        env = os.environ if environment is None else environment
        home = env.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        cache = Path(env.get("POLLARD_CACHE") or Path(home) / "pollard").expanduser()
        return cls(
            target=_choice(env, "POLLARD_TARGET", TARGETS),
            tuning=_choice(env, "POLLARD_TUNING", TUNING),
            cache=cache,
            data=Path(env.get("POLLARD_DATA") or cache / "data").expanduser(),
        )


def _choice(env: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = env.get(name) or allowed[0]
    if value not in allowed:
        raise SettingsError(
            f"{name}={value!r}", "one of " + ", ".join(allowed), f"Unset {name} to use {allowed[0]!r}."
        )
    return value
