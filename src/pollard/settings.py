"""Every knob that is read from the environment, typed, in one place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pollard.errors import SettingsError

TARGETS = ("auto", "avx512", "avx2", "neon", "reference")
TUNING = ("measure", "default")
RESULTS = ("kept", "heap")
OWN = ("POLLARD_TARGET", "POLLARD_TUNING", "POLLARD_CACHE", "POLLARD_DATA", "POLLARD_RESULTS")
NAMES = (*OWN, "XDG_CACHE_HOME", "HOME")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for.

    target: POLLARD_TARGET, the instruction set kernels are generated for; ``reference`` runs plain torch.
    tuning: POLLARD_TUNING, ``measure`` times candidate tiles once per shape, ``default`` takes the built-in choice.
    cache: POLLARD_CACHE, the folder for tuning results (default ``~/.cache/pollard``).
    data: POLLARD_DATA, the folder for fetched data sets (default ``<cache>/data``).
    results: POLLARD_RESULTS, ``kept`` gives large results memory outside the heap that is kept for the next ones, ``heap``
    takes each from the C library.

    >>> Settings.read({"POLLARD_TARGET": "avx2"}).target
    'avx2'
    """

    target: str
    tuning: str
    cache: Path
    data: Path
    results: str = RESULTS[0]

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from `environment` (default: the process environment); raises SettingsError on an unknown choice."""
        env = os.environ if environment is None else environment
        return _parsed(tuple(env.get(name, "") for name in NAMES))

    @staticmethod
    def asked_target() -> str:
        """POLLARD_TARGET alone, unchecked: kernels ask at every call."""
        asked: bytes | None = _VARIABLES.get(b"POLLARD_TARGET")
        return asked.decode() if asked else TARGETS[0]


# What os.environ looks up, without the exception that it makes of each name that is not set.
_VARIABLES: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001 - for POSIX it is this


@cache
def _parsed(texts: tuple[str, ...]) -> Settings:
    env = dict(zip(NAMES, texts, strict=True))
    folder = Path(env["POLLARD_CACHE"] or _usual_cache(env["XDG_CACHE_HOME"])).expanduser()
    return Settings(
        target=_choice(env, "POLLARD_TARGET", TARGETS),
        tuning=_choice(env, "POLLARD_TUNING", TUNING),
        cache=folder,
        data=Path(env["POLLARD_DATA"] or folder / "data").expanduser(),
        results=_choice(env, "POLLARD_RESULTS", RESULTS),
    )


def _usual_cache(base: str) -> Path:
    try:
        return Path(base or Path.home() / ".cache") / "pollard"
    except RuntimeError:
        # A user without a home, as in many containers.
        return Path(tempfile.gettempdir()) / f"pollard-{os.getuid()}"


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing on the way to it, for nobody but this user; raises OSError where that fails.

    >>> make_folder(Path("cache/inside"))
    >>> oct(Path("cache/inside").stat().st_mode & 0o777)
    '0o700'
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _choice(env: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = env[name] or allowed[0]
    if value not in allowed:
        raise SettingsError(f"{name}={value!r}", "one of " + ", ".join(allowed), f"Unset {name} to use {allowed[0]!r}.")
    return value
