"""Tile sizes chosen by measurement, once per kind of problem, remembered on disk.

Every candidate computes the same bits: a kernel adds the same numbers in the same order for every panel and tile. So a
choice that differs from run to run changes how fast a network trains, never what it learns.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.code import disk
from pollard.kernels.code.once import one_at_a_time
from pollard.kernels.code.target import Target, caches
from pollard.settings import Settings

SMALL = 4e6  # multiply-adds below which choices differ by less than the noise of measuring them
VERSION = 4
ROUNDS = 10
MOST = 1 << 24  # bytes of the file: ten thousand kinds of problem
PATIENCE = 5.0  # seconds that a process waits for another one to write


@dataclass(frozen=True, order=True, slots=True)
class Choice:
    """How a kernel walks its operands: vectors a panel, or dot products at a time; columns of W a tile (0: all), whether it
    packs first, whether it takes W by columns, and whether it multiplies bfloat16 numbers in pairs.
    """

    vectors: int
    width: int
    packed: bool = True
    transposed: bool = False
    pairs: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice, why it was taken, and the candidates with their microseconds, where they were measured."""

    choice: Choice
    reason: str
    candidates: tuple[tuple[Choice, float], ...] = ()


Build = Callable[[Choice], Callable[[], Tensor]]
Entries = dict[str, Any]

_decisions: dict[str, Decision] = {}
_read: dict[Path, Entries] = {}  # what the file held when this process first looked, or last wrote


def problem(
    operation: str,
    target: Target,
    topology: Topology,
    batch: int,
    *,
    layout: str,
    threads: int,
    dtypes: tuple[str, str] = ("float32", "float32"),
) -> str:
    """The kind of problem a decision is remembered for: shapes exactly, density and large batches to a factor of about 1.2.

    dtypes: of the dense operands, and of the values.
    """
    out, width = topology.shape
    density = round(4 * math.log2(max(topology.density, 1e-9)))
    size, numbers = f"{out}x{width} batch {near_batch(batch, target)} density 2^{density / 4}", " by ".join(dtypes)
    return f"{operation} {target.isa} {topology.pattern} {size} {layout} {numbers} threads {threads}"


def near_batch(batch: int, target: Target) -> float:
    """The batch, or where it is large, its logarithm to a factor of about 1.2: batches that share a choice."""
    return batch if batch <= 4 * target.lanes else round(4 * math.log2(batch)) / 4


def known(key: str, candidates: Callable[[], list[Choice]]) -> Decision | None:
    """The decision already taken, in this process or, unless tuning is off, in one before it.

    What another process wrote is believed only where it is one of `candidates`, which are made if there is something to judge.
    """
    if key not in _decisions and Settings.read().tuning == "measure":
        remembered = _recall(key, candidates)
        if remembered is not None:
            _decisions.setdefault(key, remembered)
    return _decisions.get(key)


@one_at_a_time
def decide(key: str, work: float, candidates: list[Choice], build: Build | None) -> Decision:
    """The decision for `key`, taken now unless another thread just has: the fastest of what `build` makes, or the first of
    `candidates`, the best guess first.
    """
    if Settings.read().tuning == "default" or build is None:
        return Decision(candidates[0], "default: tuning is off")
    if key not in _decisions:
        _decisions[key] = _decided(key, work, candidates, build)
    return _decisions[key]


def _decided(key: str, work: float, candidates: list[Choice], build: Build) -> Decision:
    if len(candidates) == 1:
        return Decision(candidates[0], "the only candidate")
    if work < SMALL:
        return Decision(candidates[0], f"default: {work:.2g} multiply-adds are too few for the choice to matter")
    timed = _race(candidates, build)
    reason = f"fastest of {len(timed)} candidates measured on this machine"
    decision = Decision(timed[0][0], reason, tuple((choice, 1e6 * seconds) for choice, seconds in timed))
    _remember(key, decision)
    return decision


def _race(candidates: list[Choice], build: Build) -> list[tuple[Choice, float]]:
    # All are built before any runs: what they keep would else lie between the results that come and go, and spread the
    # heap. Then round by round, so that a busy moment of the machine hits all alike; who is far behind the best drops out.
    runs = {choice: build(choice) for choice in candidates}
    usual = runs[candidates[0]]()
    for choice in candidates[1:]:
        made = runs[choice]()
        if choice.pairs and not torch.equal(made, usual):
            # Their instruction rounds otherwise than its makers say; or what is not a number leaves that open.
            del runs[choice]
    seconds = dict.fromkeys(runs, math.inf)
    for _ in range(ROUNDS):
        close = 1.3 * min(seconds.values())
        for choice in (each for each in runs if seconds[each] <= close):
            started = time.perf_counter()
            runs[choice]()
            seconds[choice] = min(seconds[choice], time.perf_counter() - started)
    return sorted(seconds.items(), key=lambda pair: pair[1])


def candidates(
    topology: Topology,
    panels: list[tuple[int, int]],
    *,
    direct: bool = False,
    run: float = 3,
    transposed: bool = False,
) -> list[Choice]:
    """Choices worth measuring, the best guess first.

    panels: vectors a panel, and bytes of a row of it, best guess first. direct: packing may be left out. run: grains of
    a row that a tile should hold on average, or the time goes into its ends. transposed: W, unstructured, is taken by columns.
    """
    groups, columns = (topology.width, topology.groups) if transposed else (topology.groups, topology.width)
    grains, tall = topology.grains / max(groups, 1), topology.pattern.columns  # rows of the dense operand, a column
    found: list[Choice] = []
    # By columns, each width is an order of its own of all grains: two are made, and all panels tried with both.
    shared = _widths(columns, grains, tall * panels[0][1], run)[:2] if transposed else None
    for vectors, row_bytes in panels:
        for width in shared or _widths(columns, grains, tall * row_bytes, run):
            found.append(Choice(vectors, width, transposed=transposed))
            if direct and width == 0:
                found.append(Choice(vectors, width, packed=False))
    return list(dict.fromkeys(found))


def _widths(columns: int, grains: float, row_bytes: int, run: float) -> list[int]:
    # A tile of the dense operand should fill a good part of L2, or of L1, and hold `run` of the `grains` of a row.
    sizes = caches()
    if columns * row_bytes <= sizes.l1:
        return [0]
    widths = [budget // row_bytes for budget in (sizes.l1, 3 * sizes.l1 // 2, sizes.l2 // 4, sizes.l2 // 2)]
    useful = [width - width % 16 for width in widths if 16 <= width < columns and grains * width / columns >= run]
    return list(dict.fromkeys([*useful, 0]))


def _path() -> Path | None:
    folder = disk.folder()
    return None if folder is None else folder / f"tuning-v{VERSION}.json"


@one_at_a_time
def _recall(key: str, candidates: Callable[[], list[Choice]]) -> Decision | None:
    # The file is read once: looking again for each new problem would cost more than a small one computes.
    cache = Settings.read().cache
    if cache not in _read:
        path = _path()
        _read[cache] = {} if path is None else _entries(path)
    entry = _read[cache].get(key)
    return None if entry is None else _believed(entry, candidates())


def _believed(entry: Any, candidates: list[Choice]) -> Decision | None:
    # Choices are ours, the file only says which of them: what is no candidate, or holds nonsense, is measured again.
    own = {choice: choice for choice in candidates}
    try:
        timed = [(_choice(each["choice"]), float(each["us"])) for each in entry["candidates"]]
        chosen, reason = own[_choice(entry)], str(entry["reason"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    if not all(0.0 <= microseconds < math.inf for _, microseconds in timed):
        return None
    return Decision(chosen, f"{reason}, remembered", tuple((own[each], us) for each, us in timed if each in own))


def _choice(entry: Any) -> Choice:
    return Choice(*(entry[field.name] for field in fields(Choice)))


def _entries(path: Path) -> Entries:
    content = disk.read(path, MOST)
    try:
        entries = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _remember(key: str, decision: Decision) -> None:
    import filelock  # only who measures writes

    path = _path()
    if path is None:
        return
    timed = [{"choice": asdict(choice), "us": round(us, 1)} for choice, us in decision.candidates]
    # What other processes wrote meanwhile stays. Where there is no lock to be had, they measure again: that is all.
    with (
        contextlib.suppress(OSError, NotImplementedError),
        filelock.FileLock(f"{path}.lock", timeout=PATIENCE, mode=0o600),
    ):
        entries = _entries(path)
        entries[key] = {**asdict(decision.choice), "reason": decision.reason, "candidates": timed}
        disk.write(path, json.dumps(entries, indent=1).encode())
        _read[Settings.read().cache] = entries
