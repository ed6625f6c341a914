"""Runs side by side on this machine, each in a process that serves one after the other."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pollard.recipes.device import device_called
from pollard.recipes.engines.execution import Outcome, execute, fail
from pollard.recipes.parent import end_with_parent
from pollard.recipes.recipe import Recipe

ATTEMPTS = 2


def cores() -> int:
    """How many cores this process may use: fewer than the machine has, where a scheduler or taskset says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_locally(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    workers: int,
    address: str | None = None,  # noqa: ARG001  every engine is called alike
    aims: bool = True,
    device: str = "cpu",
    on_done: Callable[[Outcome], None],
) -> None:
    """Run `recipes` in `workers` processes; one that dies is replaced, and its run goes on from its checkpoint, once.

    Each process serves many runs, since importing takes longer than a small run. Interrupted, all of them stop at once.
    Raises InvalidInput where the device is not there.
    """
    device_called(device)
    left: queue.SimpleQueue[Recipe] = queue.SimpleQueue()
    for recipe in recipes:
        left.put(recipe)
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    threads = max(1, cores() // workers)
    stop, others = threading.Event(), multiprocessing.active_children()
    slots = [
        threading.Thread(target=_serve, args=(left, done, out, (threads, aims, device), stop), daemon=True)
        for _ in range(min(workers, len(recipes)))
    ]
    for slot in slots:
        slot.start()
    try:
        for _ in recipes:
            on_done(_next(done))
    except BaseException:
        # Interrupted: what runs is to be taken up again, so nothing is lost by ending it in its middle.
        stop.set()
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        raise


def _next(done: queue.SimpleQueue[Outcome | BaseException]) -> Outcome:
    """The next outcome; what has gone wrong with the slots themselves is raised."""
    outcome = done.get()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _serve(
    left: queue.SimpleQueue[Recipe],
    done: queue.SimpleQueue[Outcome | BaseException],
    out: Path,
    how: tuple[int, bool, str],
    stop: threading.Event,
) -> None:
    """Take runs until none is left, each to a process of this slot's own; how: on how many threads, whether aims are measured, and the device."""
    pool = _pool()
    try:
        while not stop.is_set():
            recipe = left.get_nowait()
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    done.put(pool.submit(execute, recipe.to_dict(), str(out), *how).result())
                    break
                except BrokenProcessPool:
                    if stop.is_set():
                        return
                    pool = _pool()
                    if attempt == ATTEMPTS:
                        told = f"its process died {ATTEMPTS} times, for want of memory perhaps"
                        fail(out, recipe.digest, told)
                        done.put(Outcome(recipe.digest, 0.0, told))
    except queue.Empty:
        pass
    except BaseException as error:  # noqa: BLE001  raised where the outcomes are awaited
        done.put(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent, initargs=(os.getpid(),))
