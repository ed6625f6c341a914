"""Writes src/pollard/training/shorthands.pyi: what type checkers and editors read of the methods' shorthands."""

from __future__ import annotations

import re
import sys
import typing
from inspect import Parameter, getsource
from pathlib import Path

import torch

from pollard.training import shorthands
from pollard.training.methods import METHODS

STUB = Path(shorthands.__file__).with_suffix(".pyi")
HEAD = '''"""Made by scripts/stub.py from the methods' own builders: change those, then run it."""

'''


def stub() -> str:
    """The text of the stub."""
    functions = [_function(name) for name in sorted(METHODS, key=lambda name: METHODS[name].__name__)]
    body = "\n".join(functions)
    homes: dict[str, set[str]] = {}
    words = set(re.findall(r"(?<![\w.])[A-Z]\w+", re.sub(r'""".*?"""|"[^"]*"', "", body, flags=re.DOTALL)))
    for word in words - {"None", "True", "False"}:
        homes.setdefault(_home(word), set()).add(word)
    homes.setdefault("torch", set()).add("nn")
    homes.setdefault("inspect", set()).add("Signature")
    homes.setdefault("collections.abc", set()).add("Callable")
    imports = "\n".join(f"from {home} import {', '.join(sorted(names))}" for home, names in sorted(homes.items()))
    names = ", ".join(
        f'"{METHODS[name].__name__}"' for name in sorted(METHODS, key=lambda name: METHODS[name].__name__)
    )
    public = f"__all__ = [{names}]"
    others = "def signature_of(name: str) -> Signature: ...\ndef shorthand(name: str) -> Callable[..., Sparsifier] | None: ..."
    return f"{HEAD}{imports}\n\n{public}\n\n{others}\n{body}"


def _function(name: str) -> str:
    told = (METHODS[name].__doc__ or "").strip().splitlines()[0]
    lines, keywords = [], False
    for each in shorthands.signature_of(name).parameters.values():
        if each.kind is Parameter.KEYWORD_ONLY and not keywords:
            lines.append("    *,")
            keywords = True
        default = "" if each.default is Parameter.empty else f" = {each.default!r}"
        lines.append(f"    {each.name}: {each.annotation}{default},")
    parameters = "\n".join(lines).replace("'", '"')
    return f'def {METHODS[name].__name__}(\n{parameters}\n) -> Sparsifier:\n    """{told}"""\n'


def _home(word: str) -> str:
    """The module that defines a name which annotations use."""
    if word in typing.__all__:
        return "typing"
    for name, module in list(sys.modules.items()):
        defines = rf"^(class {word}\b|{word} = )"
        if name.startswith("pollard.") and word in vars(module) and re.search(defines, getsource(module), re.MULTILINE):
            return name
    return "torch.optim" if hasattr(torch.optim, word) else "torch"


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
