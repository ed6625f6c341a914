"""From a name to a module: a registered network, of a width in its name, layers by size, or a function of the user's."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from pollard.arguments import nearest
from pollard.errors import InvalidInput
from pollard.networks import fully_connected
from pollard.networks.architecture import ARCHITECTURES, Ends
from pollard.networks.own import FUNCTION, called_between, is_own

WIDTH = re.compile(r"-x([0-9]+(?:\.[0-9]+)?)")


def known() -> str:
    """The names of networks, for help and messages."""
    wide = [name for name, each in ARCHITECTURES.items() if each.widens]
    fixed = [name for name, each in ARCHITECTURES.items() if not each.widens]
    return (
        f"{', '.join(fixed)}, mlp and its layer sizes as in mlp-784-1024-1024-10, {', '.join(wide)} "
        f"(a factor of all widths may follow, as in vgg-16-x0.25), or {FUNCTION} of your own"
    )


def require_name(name: str) -> None:
    """Raises InvalidInput unless `name` is that of a network; whether a function of the user's is there is seen later."""
    if not is_own(name) and not fully_connected.is_fully_connected(name):
        _found(name)


def usual_ends(name: str) -> Ends:
    """What the network called `name` was made for in its paper; of a fully connected one, what its sizes say.

    >>> usual_ends("vgg-16-x0.5")
    Ends(input_shape=(3, 32, 32), classes=10)
    """
    if name not in ARCHITECTURES and fully_connected.is_fully_connected(name):
        return fully_connected.usual_ends(name)
    return ARCHITECTURES[_found(name)[0]].usual


def build(name: str, ends: Ends) -> nn.Module:
    """The network called `name` between `ends`, in training mode, with torch's own initial weights.

    They are drawn from torch's global generator. Raises InvalidInput where there is none of that name, or it does not take
    inputs of that shape.

    >>> sum(each.numel() for each in build("resnet-20", Ends((3, 32, 32), 10)).parameters())
    269722
    """
    if is_own(name):
        model = called_between(name, ends)
    elif name not in ARCHITECTURES and fully_connected.is_fully_connected(name):
        model = fully_connected.network(fully_connected.layer_sizes(name, ends))
    else:
        model = _made(name, ends)
    _try(model, name, ends)
    return model.train()


def _found(name: str) -> tuple[str, float]:
    """The registered name, and the factor behind it."""
    if name in ARCHITECTURES:
        return name, 1.0
    suffix = WIDTH.search(name)
    stem = name[: suffix.start()] if suffix else name
    if suffix is None or suffix.end() != len(name) or stem not in ARCHITECTURES:
        fix = nearest(stem, ARCHITECTURES) or "The sizes of an mlp begin with the features of the data."
        raise InvalidInput(f"model {name!r}", known(), fix)
    width = float(suffix[1])
    if not ARCHITECTURES[stem].widens or not 0.0 < width <= 64.0:
        raise InvalidInput(
            f"model {name!r}",
            "a factor above 0, up to 64, of a network whose widths can change",
            f"Use {stem!r}" + (f", or {stem}-x0.5." if ARCHITECTURES[stem].widens else "."),
        )
    return stem, width


def _made(name: str, ends: Ends) -> nn.Module:
    stem, width = _found(name)
    chosen = ARCHITECTURES[stem]
    if len(ends.input_shape) != len(chosen.usual.input_shape) and not fully_connected.is_fully_connected(stem):
        raise InvalidInput(
            f"inputs of shape {ends.input_shape} for {name!r}",
            "images, (channels, height, width)",
            "Use data that come as images, or lenet-300-100, or an mlp.",
        )
    return chosen.make(ends, width)


@torch.no_grad()
def _try(model: nn.Module, name: str, ends: Ends) -> None:
    """Call `model` once, on zeros, which makes lazy layers too; evaluation mode leaves what norms have seen as it is."""
    like = next(model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
    try:
        found = model.eval()(torch.zeros(2, *ends.input_shape, dtype=like.dtype, device=like.device))
    except Exception as error:  # whatever a module of the user's raises
        raise InvalidInput(
            f"inputs of shape {ends.input_shape} for {name!r}, which fails on them: {error}",
            "a network that takes inputs of this shape",
            "Images may be too small for it: each pooling and each stride halves them.",
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[1] < ends.classes:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInput(
            f"outputs {shape} of {name!r} for 2 inputs",
            f"one output for each of {ends.classes} classes, (2, {ends.classes})",
            "Give the network's last layer as many outputs as the data has classes.",
        )
