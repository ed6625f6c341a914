"""What a named network is: how it is made for data of one shape, and the data that its paper made it for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import nn

from pollard.arguments import require_untaken


class Ends(NamedTuple):
    """What a network stands between: the shape of one input, `(channels, height, width)` or `(features,)`, and the classes.

    >>> Ends((3, 32, 32), 10).channels
    3
    """

    input_shape: tuple[int, ...]
    classes: int

    @property
    def channels(self) -> int:
        """The first size of an input."""
        return self.input_shape[0]


CIFAR = Ends((3, 32, 32), 10)
MNIST = Ends((1, 28, 28), 10)
Make = Callable[[Ends, float], nn.Module]
Maker = TypeVar("Maker", bound=Make)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network by name.

    make: the module between given ends, its widths times a factor. usual: the ends of its paper. widens: whether the factor
    may be another than 1.
    """

    make: Make
    usual: Ends
    widens: bool


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, usual: Ends = CIFAR, *, widens: bool = True) -> Callable[[Maker], Maker]:
    """Have the function below make the network `name`; raises InvalidInput where a function of another module does.

    ::

        @architecture("resnet-20")
        def resnet_20(ends: Ends, width: float) -> nn.Module:
            ...
    """

    def register(make: Maker) -> Maker:
        require_untaken("network", name, make, {known: each.make for known, each in ARCHITECTURES.items()})
        ARCHITECTURES[name] = Architecture(make, usual, widens)
        return make

    return register


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1.

    >>> scaled(64, 0.25), scaled(20, 0.33)
    (16, 7)
    """
    return max(1, round(channels * width))
