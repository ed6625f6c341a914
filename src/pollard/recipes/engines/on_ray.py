"""Runs on a Ray cluster, or on a Ray that is started here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pollard.errors import InvalidInput
from pollard.recipes.engines.execution import Outcome, execute, fail
from pollard.recipes.recipe import Recipe


def run_on_ray(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    workers: int,
    address: str | None = None,
    aims: bool = True,
    device: str = "cpu",
    on_done: Callable[[Outcome], None],
) -> None:
    """Run `recipes` as Ray tasks of one CPU each; without an `address`, Ray is started here with `workers` CPUs.

    All machines of a cluster must see `out` under the same path. Raises InvalidInput where Ray is not installed.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        cluster: dict[str, Any] = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(**cluster, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InvalidInput(
                f"no Ray cluster at {address!r}: {error}" if address else f"no Ray that starts here: {error}",
                "a cluster that can be joined",
                "Check the address with `ray status`, or leave --ray-address out to start one here.",
            ) from error
    try:
        # What dies with its node is taken up again elsewhere, from its checkpoint.
        task = ray.remote(num_cpus=1, max_retries=1)(execute)
        waiting = {task.remote(recipe.to_dict(), str(out.resolve()), 1, aims, device): recipe for recipe in recipes}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for reference in ready:
                on_done(_outcome(ray, reference, waiting.pop(reference), out))
    finally:
        if started:
            ray.shutdown()


def _outcome(ray: Any, reference: Any, recipe: Recipe, out: Path) -> Outcome:
    try:
        found = ray.get(reference)
    except ray.exceptions.RayError as error:
        told = f"{type(error).__name__}: {error}"
        fail(out, recipe.digest, told)
        return Outcome(recipe.digest, 0.0, told)
    assert isinstance(found, Outcome)
    return found


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # an extra: studies on this machine do without it
    except ImportError as error:
        raise InvalidInput(
            "engine 'ray' without Ray", "the package ray", "Run: pip install 'pollard[ray]', or use --engine local."
        ) from error
    return ray
