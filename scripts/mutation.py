"""Mutation testing: one small wrong change to a module at a time, and whether its tests notice.

A mutant that no test fails is a survivor: read it, and either write the test that it lacks, or see that it computes the same and
say why in equivalent_mutants.toml.
Modules, and the tests that belong to each, are in TESTS. Each mutant runs in a fork of a process that has torch loaded, on a
copy of the tree. Results are kept, one a line: a run that was stopped goes on, and only mutants of changed lines run again.

    python scripts/mutation.py                       # a sample of every module
    python scripts/mutation.py --report              # what is known so far
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mutants import Mutant, mutants

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
COPIED = ("src", "tests", "conftest.py", "pyproject.toml")
PRELOADED = ("numpy", "pytest", "safetensors.torch", "scipy.sparse", "torch", "llvmlite.binding", "rich")
METHODS = "src/pollard/training/methods"
EVERY_METHOD = (
    "tests/training/methods/test_growth.py",
    "tests/training/methods/test_every_method.py",
    "tests/training/test_weights.py",
    "tests/training/methods/test_bad_input.py",
)
# Slow, or of no concern to any one method: what they would notice, others do sooner.
LEFT_OUT = "not (compiled or saved_and_loaded or schedulers or clipping or every_method_moves or closure or copied)"
# By module, or by folder, the tests that answer for it besides its own mirror in tests/, the quickest first.
TESTS: dict[str, tuple[str, ...]] = {
    METHODS: EVERY_METHOD,
    "src/pollard/training/weights.py": ("tests/training/methods/test_momentum.py", *EVERY_METHOD[1:]),
    "src/pollard/formats/rewiring.py": ("tests/kernels/indices/test_rewire.py",),
    "src/pollard/pruning/masks.py": ("tests/pruning/test_running_top.py",),
    "src/pollard/pruning/allocation.py": ("tests/pruning/test_decision.py", "tests/pruning/test_rounds.py"),
    "src/pollard/kernels/indices/rewire.py": ("tests/kernels/indices/test_candidates.py",),
    "src/pollard/kernels/products/tuning.py": ("tests/kernels/products/test_tuning_by_default.py",),
    "src/pollard/kernels/products/dispatch.py": (
        "tests/kernels/products/test_tuning.py",
        "tests/ops",
        "tests/kernels/products/test_parity.py",
        "tests/kernels/products/test_same_bits.py",
        "tests/kernels/products/test_half_precision.py",
        "tests/kernels/products/test_blocks.py",
    ),
}

MEMORY = 16 << 30  # of addresses: a mutant may ask for any size


def answering(module: str) -> list[list[str]]:
    """Paths of the tests that answer for `module`: its mirror and its own examples, and then, for what outlives them, others."""
    mirror = Path(module.replace("src/pollard", "tests", 1))
    own = str(mirror.with_name(f"test_{mirror.name}"))
    others = TESTS.get(module) or TESTS[str(Path(module).parent)]
    published = ["tests/training/methods/test_published_choices.py"] if METHODS in module else []
    return [[*([own] if (ROOT / own).exists() else []), module, *published], [each for each in others if each != own]]


class Copy:
    """A copy of the tree, in which one module at a time is changed, and from which tests run."""

    def __init__(self, folder: Path, *, wide: bool = True) -> None:
        self.folder, self.wide = folder, wide
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, folder / name)
        compileall.compile_dir(folder / "src", quiet=1)

    def run(self, module: str, source: str, limit: float) -> tuple[str, float]:
        """What becomes of the tests of `module` with `source` in its place: passed, killed, or over a `limit` in seconds."""
        path = self.folder / module
        original = path.read_text(encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()  # it may have the size and the second of what takes its place
        path.write_text(source, encoding="utf-8")
        started = time.monotonic()
        try:
            statuses = (self._fork(tests, limit) for tests in answering(module)[: 1 + self.wide])
            status = next((status for status in statuses if status != 0), 0)
        finally:
            path.write_text(original, encoding="utf-8")
        return {0: "survived", None: "timeout"}.get(status, "killed"), time.monotonic() - started

    def _fork(self, tests: list[str], limit: float) -> int | None:
        child = os.fork()
        if not child:
            os.setsid()
            self._test(tests)
        ends = time.monotonic() + limit
        while time.monotonic() < ends:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _test(self, tests: list[str]) -> None:
        import pytest  # preloaded; a report needs none

        os.chdir(self.folder)
        os.environ["PYTHONPATH"] = str(self.folder / "src")
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        output = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 3
        try:
            code = int(pytest.main(["-qx", "-p", "no:cacheprovider", "-k", LEFT_OUT, *tests]))
        except BaseException:  # noqa: BLE001 - it is told in the output, and a fork goes no further
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


def modules(asked: Iterable[str]) -> list[str]:
    """The modules under test whose path holds any of the words `asked`; all of them where nothing is asked."""
    listed = [
        path for name in TESTS for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))
    ]
    names = sorted(str(path.relative_to(ROOT)) for path in listed if path.name != "__init__.py")
    words = list(asked)
    return [name for name in names if not words or any(word in name for word in words)]


def sampled(module: str, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of `module`, or all where it has no more or `count` is 0; more of them for another seed only."""
    all_of_it = mutants(module, (ROOT / module).read_text(encoding="utf-8"))
    random.Random(f"{seed} {module}").shuffle(all_of_it)
    return all_of_it[: count or None]


def known(results: Path) -> dict[str, dict[str, Any]]:
    """What has been found out, by key."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def run(names: list[str], results: Path, *, sample: int, seed: int, minutes: float, wide: bool) -> None:
    """Try the sampled mutants of the modules `names` that `results` does not tell of, and add them, for so many minutes."""
    for name in PRELOADED:
        __import__(name)
    ends, done = time.monotonic() + 60 * minutes, known(results)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder, results.open("a", encoding="utf-8") as file:
        copy = Copy(Path(folder), wide=wide)
        for module in names:
            waiting = [mutant for mutant in sampled(module, sample, seed) if mutant.key not in done]
            if not waiting or time.monotonic() > ends:
                continue
            verdict, seconds = copy.run(module, (ROOT / module).read_text(encoding="utf-8"), 900.0)
            print(f"{module}: {len(waiting)} mutants, {seconds:.0f} s each at most", flush=True)
            if verdict != "survived":
                sys.exit(f"The tests of {module} fail as it is:\n{(copy.folder / 'output.txt').read_text()[-3000:]}")
            for mutant in waiting:
                if time.monotonic() > ends:
                    break
                verdict, took = copy.run(module, mutant.source, 2 * seconds + 10)
                entry = {**asdict(mutant), "key": mutant.key, "verdict": verdict, "seconds": round(took, 1)}
                del entry["source"]
                file.write(json.dumps(entry) + "\n")
                file.flush()
                print(f"  {verdict:9s}{took:5.0f} s  line {mutant.line}: {mutant.old!r} -> {mutant.new!r}", flush=True)


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """Why mutants that survive are no mistakes, by module, the text of the line, and what was replaced by what."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    return {(entry["module"], entry["line"], entry["old"], entry["new"]): entry["reason"] for entry in entries}


def report(names: list[str], results: Path) -> None:
    """Print a table of `names`, and each survivor that the code as it is still has, those that are no mistakes apart."""
    done, reasons = known(results), equivalents()
    print(
        "| module | mutants | tried | killed | timeout | survived | of these equivalent |\n|---|---|---|---|---|---|---|"
    )
    survivors, equal = [], []
    for module in names:
        every, lines = sampled(module, 0, 0), (ROOT / module).read_text(encoding="utf-8").splitlines()
        entries = [done[each.key] for each in every if each.key in done]
        counts = [sum(entry["verdict"] == each for entry in entries) for each in ("killed", "timeout", "survived")]
        alike = 0
        for entry in sorted(entries, key=lambda entry: entry["line"]):
            if entry["verdict"] == "survived":
                line = lines[entry["line"] - 1].strip()
                reason = reasons.get((module, line, entry["old"], entry["new"]))
                alike += reason is not None
                told = f"{module}:{entry['line']}: {entry['old']!r} -> {entry['new']!r}"
                (survivors if reason is None else equal).append(told if reason is None else f"{told}: {reason}")
        print(
            f"| {module.removeprefix('src/pollard/')} | {len(every)} | {len(entries)} | {' | '.join(map(str, counts))} | {alike} |"
        )
    print("\nSurvivors:", *survivors, "\nEquivalent:", *equal, sep="\n")


def main() -> None:
    """Read the arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="words of the modules' paths; all by default")
    parser.add_argument("--sample", type=int, default=20, help="mutants of each module, 0 for all (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no further one begins (default: 60)")
    parser.add_argument("--results", type=Path, default=ROOT / "mutation.jsonl", help="what is known so far")
    parser.add_argument("--quick", action="store_true", help="only the mirror of each module, and its examples")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is known")
    asked = parser.parse_args()
    names = modules(asked.modules)
    if not asked.report:
        run(names, asked.results, sample=asked.sample, seed=asked.seed, minutes=asked.minutes, wide=not asked.quick)
    report(names, asked.results)


if __name__ == "__main__":
    main()
