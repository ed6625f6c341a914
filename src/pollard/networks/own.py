"""Functions that make networks, by the name that a command line or a recipe gives them: `package.module:function`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn

from pollard.errors import InvalidInput
from pollard.networks.architecture import Ends

FUNCTION = "package.module:function"
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Whether `name` is written as `package.module:function` is.

    >>> is_own("my_models:small"), is_own("vgg-16")
    (True, False)
    """
    return NAME.fullmatch(name) is not None


def call_named(name: str, returned: str, call: Callable[[Callable[..., Any]], Any]) -> Any:
    """What `call` makes of the function `name`; the current folder is among those that modules are found in.

    returned: what such a function is to return, for messages. Raises InvalidInput where there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    with _current_folder():
        return call(function_named(module_name, function_name, returned))


def function_named(module_name: str, function_name: str, returned: str) -> Callable[..., Any]:
    """The function of that name, imported; raises InvalidInput, saying what there is, where there is none.

    >>> function_named("math", "floor", "a number")(2.5)
    2
    """
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InvalidInput(
            f"module {module_name!r}, which is not found",
            "a module that is installed, or lies in the current folder",
            f"Run the command in the folder that {module_name.split('.', maxsplit=1)[0]} lies in.",
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if function is None or not callable(function) or isinstance(function, nn.Module):
        there = [name for name, each in vars(module).items() if inspect.isfunction(each)]
        raise InvalidInput(
            f"{function_name!r}, which is no function of {module_name}",
            "one of " + ", ".join(there) if there else "a function",
            f"Name one that returns {returned}.",
        )
    return function


def accepts(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether `function` can be called with these `arguments`; one that does not tell is taken to.

    >>> accepts(lambda shape, classes: None), accepts(lambda shape=(), classes=2: None)
    (False, True)
    """
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def called_between(name: str, ends: Ends) -> nn.Module:
    """The model that the function `name` makes, given `(input_shape, classes)` where it takes them, and nothing where not.

    One that returns a model and its inputs, as `pollard bench --network` wants it, serves too.
    Raises InvalidInput where there is no such function, it takes something else, or returns no module.
    """

    def call(function: Callable[..., Any]) -> Any:
        if accepts(function, *ends):
            return function(*ends)
        if accepts(function):
            return function()
        raise InvalidInput(
            f"{name}{inspect.signature(function)}",
            "a function of (input_shape, classes), or of nothing",
            "Give the other arguments defaults, or write a function that calls it.",
        )

    made = call_named(name, "an nn.Module", call)
    model = made[0] if isinstance(made, tuple) and made else made
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{type(made).__name__} from {name}", "an nn.Module", "Return the model.")
    return model


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder are found within, as `python -m` finds them."""
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added:
            sys.path.remove(folder)
