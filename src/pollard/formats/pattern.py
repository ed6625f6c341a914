"""The rule of what can be kept together, as a frozen value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from pollard.errors import PatternError

ROWS = (1, 2, 4, 8, 16)
COLUMNS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 25, 32, 49, 64)  # powers of two, and kernels of convolutions
LONGEST = 32  # grains of which N:M may have something to say

_SPELLED = (
    "Patterns are spelled 'unstructured', 'v4' (4 rows share their columns), 'b16x2' (blocks), 'k3x3' (the kernel of a pair of "
    "channels, which is b1x9), '2:4' (2 of every 4)."
)
_BLOCK, _VECTOR, _OF, _KERNEL = (
    re.compile(text) for text in (r"b(\d+)x(\d+)", r"v(\d+)", r"(\d+):(\d+)", r"k(\d+)(?:x(\d+))?")
)


@dataclass(frozen=True, order=True, slots=True, repr=False)
class Pattern:
    """A grain is a block of `rows` x `columns` weights, kept or dropped as one; where `m` is not 0, of every `m` weights
    along a row, from the first on, exactly `n` are kept.

    >>> [str(Pattern.parse(name)) for name in ("unstructured", "v4", "b16x2", "2:4", "k3x3")]
    ['unstructured', 'v4', 'b16x2', '2:4', 'b1x9']
    >>> Pattern.parse("b16x2").size, Pattern.parse("2:4").density, Pattern.parse("v4").density
    (32, 0.5, None)
    """

    rows: int = 1
    columns: int = 1
    n: int = 0
    m: int = 0

    def __post_init__(self) -> None:
        if self.rows not in ROWS or self.columns not in COLUMNS:
            raise PatternError(f"pattern '{self}'", f"rows of {ROWS}, columns of {COLUMNS}", _SPELLED)
        if (self.n or self.m) and (not 0 < self.n < self.m <= LONGEST or self.size > 1):
            raise PatternError(
                f"pattern '{self}'",
                f"N of every M single weights, 0 < N < M <= {LONGEST}",
                _SPELLED,
            )

    def __str__(self) -> str:
        if self.m:
            return f"{self.n}:{self.m}"
        if self.columns > 1:
            return f"b{self.rows}x{self.columns}"
        return "unstructured" if self.rows == 1 else f"v{self.rows}"

    def __repr__(self) -> str:
        return f"Pattern.parse('{self}')"

    def __setstate__(self, state: list[int]) -> None:
        # Pickles of earlier versions hold the rows alone.
        for name, value in zip(("rows", "columns", "n", "m"), (*state, *(1, 1, 0, 0)[len(state) :]), strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """The pattern that `text` names, as `str` gives it; a Pattern is returned as it is. Raises PatternError otherwise."""
        if isinstance(text, Pattern):
            return text
        found = _named(text) if isinstance(text, str) else None
        if found is None:
            raise PatternError(f"pattern {text!r}", "unstructured, vN, bRxC, kRxC or N:M, in whole numbers", _SPELLED)
        return found

    @property
    def size(self) -> int:
        """Weights of a grain."""
        return self.rows * self.columns

    @property
    def density(self) -> float | None:
        """What is kept of a layer, where the pattern says that: n / m."""
        return self.n / self.m if self.m else None

    def relaxed(self, density: float) -> Pattern:
        """What an N:M pattern is on the way there, while `density` is kept: the k of every m that come closest to it.

        >>> str(Pattern.parse("2:4").relaxed(0.8)), str(Pattern.parse("2:4").relaxed(0.1))
        ('3:4', '2:4')
        """
        return Pattern(n=min(max(round(density * self.m), self.n), self.m - 1), m=self.m) if self.m else self

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a weight of `shape` (out, in) is made of whole grains, and of whole runs of `m`."""
        return not shape[0] % self.rows and not shape[1] % (self.m or self.columns)

    def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Row groups and columns of grains of a weight of `shape` (out, in); raises PatternError unless it `fits`.

        >>> Pattern.parse("v4").grid((8, 5)), Pattern.parse("b4x2").grid((8, 6))
        ((2, 5), (2, 3))
        """
        out_features, in_features = shape
        if not self.fits(shape):
            sides = (("rows", self.rows), ("columns", self.m or self.columns))
            wanted = [f"a multiple of {count} {what}" for what, count in sides if count > 1]
            raise PatternError(
                f"a weight with {out_features} rows and {in_features} columns",
                f"{' and '.join(wanted)} for pattern {self}",
                "Choose a pattern that divides them, or 'unstructured', for this layer.",
            )
        return out_features // self.rows, in_features // self.columns

    def grain_sum(self, weights: Tensor) -> Tensor:
        """Sum of `weights` `(out, in)` over each grain, `(groups, width)`: how scores of weights make a grain's score."""
        groups, width = self.grid((weights.shape[0], weights.shape[1]))
        if self.columns > 1:
            return weights.reshape(groups, self.rows, width, self.columns).sum((1, 3))
        return weights if self.rows == 1 else weights.reshape(groups, self.rows, width).sum(1)

    def spread(self, grains: Tensor) -> Tensor:
        """Each entry of `grains` `(groups, width)` repeated over the weights of its grain, `(out, in)`."""
        for side, times in enumerate((self.rows, self.columns)):
            grains = grains if times == 1 else grains.repeat_interleave(times, side)
        return grains


PatternChoice = str | Pattern | Mapping[str, str | Pattern]


def patterns_of(choice: PatternChoice) -> dict[str, Pattern]:
    """The patterns of a choice, by the name patterns that they are for; one alone is for all.

    >>> patterns_of("2:4")
    {'*': Pattern.parse('2:4')}
    """
    named = choice if isinstance(choice, Mapping) else {"*": choice}
    return {name: Pattern.parse(text) for name, text in named.items()}


def density_of(choice: PatternChoice) -> float | None:
    """The density that all patterns of a choice keep in any case, if there is one.

    >>> density_of("2:4"), density_of("v4"), density_of({"*": "2:4", "head": "unstructured"})
    (0.5, None, None)
    """
    found = {each.density for each in patterns_of(choice).values()}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=256)  # operators are told patterns by name, at each call
def _named(text: str) -> Pattern | None:
    if text == "unstructured":
        return Pattern()
    if vector := _VECTOR.fullmatch(text):
        return Pattern(int(vector[1]))
    if block := _BLOCK.fullmatch(text):
        return Pattern(int(block[1]), int(block[2]))
    if kernel := _KERNEL.fullmatch(text):
        return Pattern(1, int(kernel[1]) * int(kernel[2] or 1))
    if some := _OF.fullmatch(text):
        return Pattern(n=int(some[1]), m=int(some[2]))
    return None
