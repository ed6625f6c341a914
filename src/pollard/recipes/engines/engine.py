"""What an engine is, and how a study is run on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pollard.recipes.engines.execution import Outcome, has_failed, is_finished
from pollard.recipes.engines.local import run_locally
from pollard.recipes.engines.on_ray import run_on_ray
from pollard.recipes.folder import FAILURE
from pollard.recipes.known import is_enough, known
from pollard.recipes.recipe import Recipe
from pollard.recipes.study import Study

OnDone = Callable[[Outcome], None]


class Engine(Protocol):
    """Runs recipes side by side, and tells of each as it is done."""

    def __call__(
        self,
        recipes: Sequence[Recipe],
        out: Path,
        *,
        workers: int,
        address: str | None,
        aims: bool,
        device: str,
        on_done: OnDone,
    ) -> None:
        """Run `recipes` in `out` on `device`, `workers` at a time, and measure `aims`; `address` names a cluster to join."""


ENGINES: dict[str, Engine] = {"local": run_locally, "ray": run_on_ray}


def run_study(
    study: Study,
    out: Path,
    *,
    engine: str = "local",
    workers: int,
    address: str | None = None,
    device: str = "cpu",
    retry: bool = False,
    on_done: OnDone = lambda _: None,
) -> list[Outcome]:
    """Run what is left of `study` in `out`; every run that failed, now or before, is returned as an outcome.

    A run has a folder named by its recipe's hash: a finished one is never run again, a killed one goes on from its last
    checkpoint, and a failed one is left alone unless `retry`. Killed at any moment, the same call goes on. `device`: as for a run;
    all that run side by side share it.
    """
    study.save(out)
    left = unfinished(study, out)
    failed: list[Outcome] = []
    for recipe in [recipe for recipe in left if has_failed(out, recipe)]:
        if retry:
            (out / recipe.digest / FAILURE).unlink(missing_ok=True)
        else:
            left.remove(recipe)
            failed.append(Outcome(recipe.digest, 0.0, "it failed before; --retry runs it again"))

    def tell(outcome: Outcome) -> None:
        if outcome.error is not None:
            failed.append(outcome)
        on_done(outcome)

    if left:
        run_all = ENGINES[engine]
        run_all(left, out, workers=workers, address=address, aims=study.aims, device=device, on_done=tell)
    return failed


def unfinished(
    study: Study, out: Path, brought: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> list[Recipe]:
    """What is still to be run of `study` in `out`, in the order of `Study.recipes`; `brought`: points besides those known there.

    A point is no network: where weights are taken from its run, that one is made all the same.
    """
    at_hand = {run for run, point in {**known(out), **brought}.items() if is_enough(point, aims=study.aims)}
    return [recipe for recipe in study.recipes(at_hand) if not is_finished(out, recipe, aims=study.aims)]
