"""Small wrong changes to the source of a module: what mutation.py tries."""

from __future__ import annotations

import ast
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
