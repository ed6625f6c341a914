"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "src" / "pollard").rglob("*.py"))
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "misc", "tools"}
SELECTION = {"topk", "kthvalue", "argpartition"}


def names(path: Path) -> set[str]:
    """Every identifier that the module at `path` defines or uses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case _:
                pass
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_named_for_what_it_holds(path):
    assert path.stem not in VAGUE


def test_one_top_k_in_the_whole_library():
    selecting = [str(path.relative_to(ROOT / "src")) for path in MODULES if names(path) & SELECTION]
    assert selecting in ([], ["pollard/pruning/masks.py"])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_speaks_of_density_only(path):
    assert [name for name in names(path) if "sparsity" in name.lower()] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_import_inside_a_function_gives_its_reason(path):
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    imports = {
        node.lineno for body in functions for node in ast.walk(body) if isinstance(node, ast.Import | ast.ImportFrom)
    }
    lines = text.splitlines()
    assert [line for line in sorted(imports) if "  # " not in lines[line - 1]] == []


MAKERS = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint",
    "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip


def nameless(text: str) -> list[int]:
    """Lines of calls that leave the dtype or the device of a new tensor to torch's defaults, which are the user's to set."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr) in {("torch", maker) for maker in MAKERS}
        and not {"dtype", "device"} <= {keyword.arg for keyword in call.keywords}
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_new_tensor_names_its_dtype_and_its_device(path):
    assert nameless(path.read_text(encoding="utf-8")) == []


def test_a_tensor_that_takes_a_default_would_be_seen():
    assert nameless("torch.empty(3)\nx.new_empty(3)\ntorch.zeros(2, dtype=d)\ntorch.ones(1, dtype=d, device=e)") == [
        1,
        3,
    ]
