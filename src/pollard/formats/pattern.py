"""The rule of what can be kept together, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pollard.errors import PatternError

ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, order=True, slots=True)
class Pattern:
    """A grain is `rows` neighbouring rows of one column, kept or dropped as one.

    >>> str(Pattern(rows=1)), str(Pattern(rows=4)), Pattern.parse("v4")
    ('unstructured', 'v4', Pattern(rows=4))
    """

    rows: int = 1

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise PatternError(
                f"{self.rows} rows a grain", f"one of {ROWS}", "Use 'unstructured', 'v2', 'v4', 'v8' or 'v16'."
            )

    def __str__(self) -> str:
        return "unstructured" if self.rows == 1 else f"v{self.rows}"

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """The pattern that `text` names; a Pattern is returned as it is. Raises PatternError on any other text."""
        if isinstance(text, Pattern):
            return text
        named = {str(cls(rows)): cls(rows) for rows in ROWS}
        if text not in named:
            raise PatternError(
                f"pattern {text!r}",
                "one of " + ", ".join(named),
                "Patterns are spelled as in 'v4': 4 rows share their columns.",
            )
        return named[text]

    def grain_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Row groups and columns of a weight of `shape`; raises PatternError where `rows` does not divide it.

        >>> Pattern.parse("v4").grain_shape((8, 5))
        (2, 5)
        """
        out_features, in_features = shape
        if out_features % self.rows:
            raise PatternError(
                f"a weight with {out_features} rows",
                f"a multiple of {self.rows} rows for pattern {self}",
                "Choose a pattern that divides the rows, or 'unstructured', for this layer.",
            )
        return out_features // self.rows, in_features

    def grain_sum(self, weights: Tensor) -> Tensor:
        """Sum of `weights` `(out, in)` over each grain, `(out / rows, in)`: how scores of weights make a grain's score."""
        groups, columns = self.grain_shape((weights.shape[0], weights.shape[1]))
        return weights if self.rows == 1 else weights.reshape(groups, self.rows, columns).sum(1)

    def spread(self, grains: Tensor) -> Tensor:
        """Each entry of `grains` `(out / rows, in)` repeated over the weights of its grain, `(out, in)`."""
        return grains if self.rows == 1 else grains.repeat_interleave(self.rows, 0)
