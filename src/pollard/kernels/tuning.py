"""Tile sizes chosen by measurement, once per kind of problem, remembered on disk.

Every candidate computes the same bits: a kernel adds the same numbers in the same order for every panel and tile. So a
choice that differs from run to run changes how fast a network trains, never what it learns.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pollard.formats.topology import Topology
from pollard.kernels.target import Target, caches
from pollard.settings import Settings

SMALL = 4e6  # multiply-adds below which choices differ by less than the noise of measuring them
VERSION = 1
ROUNDS = 10
FIELDS = {"vectors": int, "width": int, "packed": bool, "transposed": bool}


@dataclass(frozen=True, order=True, slots=True)
class Choice:
    """How a kernel walks its operands: vectors a panel, columns of W a tile (0: all), whether it packs first, and whether it
    takes W by columns.
    """

    vectors: int
    width: int
    packed: bool = True
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice, why it was taken, and the candidates with their microseconds, where they were measured."""

    choice: Choice
    reason: str
    candidates: tuple[tuple[Choice, float], ...] = ()


Build = Callable[[Choice], Callable[[], object]]

_decisions: dict[str, Decision] = {}


def problem(operation: str, target: Target, topology: Topology, batch: int, *, layout: str, threads: int) -> str:
    """The kind of problem a decision is remembered for: shapes exactly, density and large batches to a factor of about 1.2."""
    out, width = topology.shape
    density = round(4 * math.log2(max(topology.density, 1e-9)))
    near = batch if batch <= 4 * target.lanes else round(4 * math.log2(batch)) / 4
    return f"{operation} {target.isa} {topology.pattern} {out}x{width} batch {near} density 2^{density / 4} {layout} threads {threads}"


def known(key: str) -> Decision | None:
    """The decision already taken, in this process or, unless tuning is off, in one before it."""
    if key not in _decisions and Settings.read().tuning == "measure":
        remembered = _recall(key)
        if remembered is not None:
            _decisions[key] = remembered
    return _decisions.get(key)


def decide(key: str, work: float, candidates: list[Choice], build: Build | None) -> Decision:
    """A new decision for `key`: the fastest of what `build` makes, or the first of `candidates`, the best guess first."""
    if Settings.read().tuning == "default" or build is None:
        return Decision(candidates[0], "default: tuning is off")
    if len(candidates) == 1:
        decision = Decision(candidates[0], "the only candidate")
    elif work < SMALL:
        decision = Decision(candidates[0], f"default: {work:.2g} multiply-adds are too few for the choice to matter")
    else:
        timed = _race(candidates, build)
        reason = f"fastest of {len(timed)} candidates measured on this machine"
        decision = Decision(timed[0][0], reason, tuple((choice, 1e6 * seconds) for choice, seconds in timed))
        _remember(key, decision)
    _decisions[key] = decision
    return decision


def _race(candidates: list[Choice], build: Build) -> list[tuple[Choice, float]]:
    # All are built before any runs: what they keep would else lie between the results that come and go, and spread the
    # heap. Then round by round, so that a busy moment of the machine hits all alike; who is far behind the best drops out.
    runs = {choice: build(choice) for choice in candidates}
    for run in runs.values():
        run()
    seconds = dict.fromkeys(candidates, math.inf)
    for _ in range(ROUNDS):
        close = 1.3 * min(seconds.values())
        for choice in (each for each in candidates if seconds[each] <= close):
            started = time.perf_counter()
            runs[choice]()
            seconds[choice] = min(seconds[choice], time.perf_counter() - started)
    return sorted(seconds.items(), key=lambda pair: pair[1])


def candidates(
    topology: Topology, panels: list[tuple[int, int]], *, direct: bool = False, run: float = 3
) -> list[Choice]:
    """Choices worth measuring, the best guess first.

    panels: vectors a panel, and bytes of a row of it, best guess first. direct: packing may be left out. run: grains of
    a row that a tile should hold on average, or the time goes into its ends.
    """
    found: list[Choice] = []
    for vectors, row_bytes in panels:
        for width in _widths(topology, row_bytes, run):
            found.append(Choice(vectors, width))
            if direct and width == 0:
                found.append(Choice(vectors, width, packed=False))
    return list(dict.fromkeys(found))


def _widths(topology: Topology, row_bytes: int, run: float) -> list[int]:
    # A tile of the dense operand should fill a good part of L2, or of L1.
    columns = topology.shape[1]
    sizes = caches()
    if columns * row_bytes <= sizes.l1:
        return [0]
    widths = [budget // row_bytes for budget in (sizes.l1, 3 * sizes.l1 // 2, sizes.l2 // 4, sizes.l2 // 2)]
    grains = topology.grains / max(topology.groups, 1)
    useful = [width - width % 16 for width in widths if 16 <= width < columns and grains * width / columns >= run]
    return list(dict.fromkeys([*useful, 0]))


def _path() -> Path:
    return Settings.read().cache / f"tuning-v{VERSION}.json"


def _recall(key: str) -> Decision | None:
    # A cache that cannot be read is measured again; one that holds nonsense too.
    try:
        entry = _entries()[key]
        choice = Choice(*(kind(entry[name]) for name, kind in FIELDS.items()))
        timed = tuple((Choice(**each["choice"]), float(each["us"])) for each in entry["candidates"])
        return Decision(choice, str(entry["reason"]) + ", remembered", timed)
    except (ValueError, KeyError, TypeError):
        return None


def _entries() -> dict[str, Any]:
    try:
        entries = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _remember(key: str, decision: Decision) -> None:
    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = _entries()
        timed = [{"choice": asdict(choice), "us": round(us, 1)} for choice, us in decision.candidates]
        entries[key] = {**asdict(decision.choice), "reason": decision.reason, "candidates": timed}
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(entries, file, indent=1)
        Path(name).replace(path)
