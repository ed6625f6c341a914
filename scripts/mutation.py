"""Mutation testing: one small wrong change to a module at a time, and whether its tests notice.

A mutant that no test fails is a survivor: read it, and either see that it computes the same, or write the test that it lacks.
Modules, and the tests that belong to each, are in TESTS. Each mutant runs in a fork of a process that has torch loaded, on a
copy of the tree. Results are kept, one a line: a run that was stopped goes on, and only mutants of changed lines run again.

    python scripts/mutation.py                       # a sample of every module
    python scripts/mutation.py --report              # what is known so far
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
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
    "src/pollard/formats/rewiring.py": ("tests/kernels/test_rewire.py",),
    "src/pollard/pruning/masks.py": ("tests/pruning/test_running_top.py",),
    "src/pollard/pruning/allocation.py": ("tests/pruning/test_decision.py",),
    "src/pollard/kernels/rewire.py": ("tests/kernels/test_candidates.py",),
    "src/pollard/kernels/tuning.py": ("tests/kernels/test_tuning_by_default.py",),
    "src/pollard/kernels/dispatch.py": ("tests/kernels/test_tuning.py", "tests/ops", "tests/kernels/test_parity.py"),
}

COMPARISONS = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.BitOr: "&",
    ast.BitAnd: "|",
    ast.RShift: "<<",
    ast.LShift: ">>",
}
NAMES = {
    "min": "max",
    "max": "min",
    "sum": "mean",
    "mean": "sum",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "round": "int",
    "ones": "zeros",
    "zeros": "ones",
    "argmax": "argmin",
    "cumsum": "cumprod",
}
MEMORY = 16 << 30  # of addresses: a mutant may ask for any size
FUNCTIONS_ONLY = {"round", "min", "max", "any", "all"}
SYMMETRIC = {"min", "max", "cat", "empty", "zeros", "ones", "full"}  # or of arguments that no exchange makes sense of


@dataclass(frozen=True, slots=True)
class Mutant:
    """`module` with `old` at `line` replaced by `new`, as `source`."""

    module: str
    line: int
    old: str
    new: str
    source: str

    @property
    def key(self) -> str:
        """The same for the same change to the same text."""
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]


def mutants(module: str, source: str) -> list[Mutant]:
    r"""All mutants of `source`, in order of lines.

    >>> [each.new for each in mutants("m.py", "def f(x):\n    return x + 1 if x < 2 else 3\n")]
    ['(x + 1)', '3', '3 if (x < 2) else (x + 1)', 'x <= 2', 'x >= 2', '3', '1', 'x - 1', '2', '0', '4', '2']
    """
    text, starts = source.encode(), [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, tree = {}, ast.parse(source)
    same = ast.dump(tree)
    for node in _worth_changing(tree):
        for part, new in _changes(node):
            first, last = starts[part.lineno - 1] + part.col_offset, starts[part.end_lineno - 1] + part.end_col_offset
            changed = (text[:first] + new.encode() + text[last:]).decode()
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(changed)) != same:
                    found[changed] = Mutant(module, part.lineno, text[first:last].decode(), new, changed)
    return sorted(found.values(), key=lambda each: each.line)


def _worth_changing(tree: ast.AST) -> Iterator[ast.AST]:
    """What computes something: not types, texts, errors, assertions, imports."""
    for field, value in ast.iter_fields(tree):
        if field in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and not _is_idle(node):
                yield node
                yield from _worth_changing(node)


def _is_idle(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.Raise() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Expr(value=ast.Constant()) | ast.Subscript(value=ast.Name(id="Literal" | "Callable")):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name.endswith(("Input", "Error"))
        case ast.keyword(arg="layer" | "cite"):
            return True  # of words in errors and lists
    return False


def _changes(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Parts of `node`, and texts to put in their places."""
    match node:
        case ast.If(test=test):
            yield from ((test, "True"), (test, "False"))
        case ast.comprehension(ifs=tests):
            yield from ((test, "True") for test in tests)
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]) | ast.AugAssign() | ast.Expr():
            yield node, "pass"
        case ast.Slice(lower=lower, upper=upper):
            yield from ((node, new) for new in _other_slices(lower, upper))
        case ast.expr():
            yield from ((node, new) for new in _other_expressions(node))


def _other_expressions(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            yield from (f"{_text(left)} {other} {_text(right)}" for other in COMPARISONS[type(operator)])
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            yield f"{_text(left)} {OPERATORS[type(operator)]} {_text(right)}"
        case ast.BoolOp(values=values, op=operator):
            yield (" and " if isinstance(operator, ast.Or) else " or ").join(map(_text, values))
            yield from map(_text, values)
        case ast.UnaryOp(operand=operand):
            yield _text(operand)
        case ast.Constant(value=value):
            yield from _other_constants(value)
        case ast.Call():
            yield from _other_calls(node)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield from (_text(body), _text(orelse), f"{_text(orelse)} if {_text(test)} else {_text(body)}")


def _text(node: ast.expr) -> str:
    text = ast.unparse(node)
    return f"({text})" if isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp | ast.Lambda) else text


def _other_constants(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int):
        yield from (str(value + 1), str(value - 1) if value > 0 else "")
    elif isinstance(value, float):
        yield from (repr(value * 10), repr(value / 10)) if value else ("1.0",)
    elif isinstance(value, str):
        yield repr(value + "x")


def _other_calls(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    before = f"{_text(node.func.value)}." if isinstance(node.func, ast.Attribute) else ""
    arguments = [*map(_text, node.args), *(ast.unparse(each) for each in node.keywords)]
    if name in NAMES and not (name == "sum" and not before) and not (name in FUNCTIONS_ONLY and before == "torch."):
        yield f"{before}{NAMES[name]}({', '.join(arguments)})"
    if name == "sum" and before and len(arguments) == 1:
        yield f"{before}select({arguments[0]}, 0)"
    if name in {"abs", "abs_", "neg", "clone", "contiguous", "sort", "sqrt", "square"} and before and not arguments:
        yield before[:-1]
    if (
        len(node.args) > 1
        and name not in SYMMETRIC
        and not any(isinstance(each, ast.Starred) for each in node.args[:2])
    ):
        arguments[:2] = arguments[1::-1]
        yield f"{_text(node.func)}({', '.join(arguments)})"
    for left_out in (each for each in node.keywords if each.arg not in {"layer", "cite"}):
        others = [*map(_text, node.args), *(ast.unparse(each) for each in node.keywords if each is not left_out)]
        yield f"{_text(node.func)}({', '.join(others)})"


def _other_slices(lower: ast.expr | None, upper: ast.expr | None) -> Iterator[str]:
    low, high = ("" if each is None else _text(each) for each in (lower, upper))
    yield f"{low} + 1:{high}" if low else f"1:{high}"
    yield f"{low}:{high} - 1" if high else f"{low}:-1"


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


def known(results: Path) -> dict[str, dict[str, object]]:
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


def report(names: list[str], results: Path) -> None:
    """Print a table of `names`, and each survivor that the code as it is still has."""
    done = known(results)
    print("| module | mutants | tried | killed | timeout | survived |\n|---|---|---|---|---|---|")
    survivors = []
    for module in names:
        every = sampled(module, 0, 0)
        entries = [done[each.key] for each in every if each.key in done]
        found = [[entry for entry in entries if entry["verdict"] == each] for each in ("killed", "timeout", "survived")]
        survivors += sorted(found[2], key=lambda entry: str(entry["line"]).zfill(5))
        print(
            f"| {module.removeprefix('src/pollard/')} | {len(every)} | {len(entries)} | "
            + " | ".join(str(len(each)) for each in found)
            + " |"
        )
    for entry in survivors:
        print(f"{entry['module']}:{entry['line']}: {entry['old']!r} -> {entry['new']!r}")


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
