"""Each method of sparse training as a call of its own, with its own options. Type checkers read the stub beside this file.

`scripts/stub.py` writes the stub from the same builders: tests/training/test_shorthands.py holds one against the other.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pollard.training.methods import METHODS
from pollard.training.methods.method import Builder, options_of
from pollard.training.sparsifier import Sparsifier
from pollard.training.start import sparse_training


def signature_of(name: str) -> Signature:
    """How method `name` is called: model and optimizer, density and steps, its own options, those of `sparse_training`.

    >>> list(signature_of("rigl").parameters)[:7]
    ['model', 'optimizer', 'density', 'steps', 'every', 'fraction', 'until']
    """
    common = {each.name: each for each in signature(sparse_training).parameters.values()}
    first = {key: common.pop(key) for key in ("model", "optimizer", "density", "steps")}
    del common["method"], common["options"]
    own = {
        key: each for key, each in signature(METHODS[name]).parameters.items() if each.kind is Parameter.KEYWORD_ONLY
    }
    return Signature([*({**first, **own, **common}).values()], return_annotation="Sparsifier")


def _shorthand(name: str) -> Callable[..., Sparsifier]:
    def start(
        model: nn.Module, optimizer: Optimizer, *, density: float | None = None, steps: int = 0, **options: Any
    ) -> Sparsifier:
        return sparse_training(model, optimizer, name, density=density, steps=steps, **options)

    builder = METHODS[name]
    start.__name__ = start.__qualname__ = builder.__name__
    start.__signature__ = signature_of(name)  # type: ignore[attr-defined]  # functions may have one
    text = (builder.__doc__ or "").split(">>>")[0].strip()
    own = ", ".join(f"{option}={default!r}" for option, default in options_of(builder).items()) or "none"
    start.__doc__ = f"""{text.splitlines()[0]}

    Makes the linear layers of `model` sparse; `step()` of what is returned takes the place of `optimizer.step()`.
    options of the method: {own}. All others are those of `sparse_training`.
    {"".join(text.splitlines(keepends=True)[1:])}
    """
    return start


def shorthand(name: str) -> Callable[..., Sparsifier] | None:
    """The call of the method whose builder has that name, whoever registered it; None where there is none."""
    return next((_made(key) for key, builder in METHODS.items() if builder.__name__ == name), None)


def _made(name: str) -> Callable[..., Sparsifier]:
    builder = METHODS[name]
    if builder not in _MADE:
        _MADE[builder] = _shorthand(name)
    return _MADE[builder]


_MADE: dict[Builder, Callable[..., Sparsifier]] = {}


def __getattr__(name: str) -> Callable[..., Sparsifier]:
    found = shorthand(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return sorted(builder.__name__ for builder in METHODS.values())
