"""Rounds of a decision in a file, so that one that was stopped goes on after the last round that it finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.store import load_tensors, save_tensors
from pollard.pruning.scoring import RoundSchedule

_GENERATOR = "generator"


class Finished(NamedTuple):
    """How many rounds are finished, and what they left: named tensors, and what is JSON."""

    rounds: int
    tensors: dict[str, Tensor]
    left: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RoundsFile:
    """What the last finished round of a `decision`, told in JSON, has left; without a `path` nothing is kept.

    >>> file = RoundsFile(Path("rounds.safetensors"), {"criterion": "synflow"})
    >>> file.write(Finished(3, {"fc1.positions": torch.arange(2)}, {}), torch.Generator())
    >>> file.read(torch.Generator())
    Finished(rounds=3, tensors={'fc1.positions': tensor([0, 1])}, left={})
    """

    path: Path | None
    decision: Mapping[str, Any]

    def read(self, generator: torch.Generator) -> Finished | None:
        """What a call before has left, `generator` brought to where it was then; None where it left nothing.

        Raises StoreError for a file that is damaged or no file of rounds, InvalidInput where another decision left it.
        """
        if self.path is None or not self.path.exists():
            return None
        tensors, told = load_tensors(self.path)
        asked = json.loads(json.dumps(self.decision))
        if told.get("decision") != asked:
            found = told.get("decision") or {}
            other = next((name for name in asked if found.get(name) != asked[name]), "criterion")
            raise InvalidInput(
                f"resume={str(self.path)!r}, which holds rounds of another decision: {other} {_short(found.get(other))}",
                f"one of {other} {_short(asked[other])}",
                "Give each decision a file of its own, or delete this one.",
            )
        generator.set_state(tensors.pop(_GENERATOR))
        return Finished(told["rounds"], tensors, told["left"])

    def write(self, finished: Finished, generator: torch.Generator) -> None:
        """Keeps that, atomically, in the place of what was there; raises StoreError where that fails."""
        if self.path is not None:
            told = {"decision": dict(self.decision), "rounds": finished.rounds, "left": finished.left}
            save_tensors(self.path, finished.tensors | {_GENERATOR: generator.get_state()}, told)

    def remove(self) -> None:
        """Once the decision is made."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def round_densities(
    density: float, rounds: int, schedule: RoundSchedule = "exponential", start: float = 1.0
) -> list[float]:
    """The density after each round: `start` times `(density / start) ** (k / rounds)`, or on a straight line where linear.

    Raises InvalidInput for less than one round, or another schedule.

    >>> [round(d, 4) for d in round_densities(0.01, 4)], [round(d, 4) for d in round_densities(0.1, 3, "linear")]
    ([0.3162, 0.1, 0.0316, 0.01], [0.7, 0.4, 0.1])
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise InvalidInput(f"rounds={rounds}", "at least 1", "Leave rounds= out for the criterion's own number.")
    steps = range(1, rounds)
    if schedule == "exponential":
        return [*(start * (density / start) ** (k / rounds) for k in steps), density]
    if schedule == "linear":
        return [*(start - (start - density) * k / rounds for k in steps), density]
    raise InvalidInput(
        f"schedule={schedule!r} of rounds", "one of exponential, linear", "Leave it out for 'exponential'."
    )


def _short(told: Any) -> str:
    text = str(told)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["Finished", "RoundsFile", "round_densities"]
