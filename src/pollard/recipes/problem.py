"""What a recipe's network has to learn: examples, split, and the sizes that fit them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from pollard import data
from pollard.errors import InvalidInput
from pollard.recipes.models import layer_shapes, layer_sizes
from pollard.recipes.recipe import Recipe
from pollard.training import Examples, generator


@dataclass(frozen=True, eq=False)
class Problem:
    """Examples to train on, sets to evaluate on by name, and the neurons per layer, input and output included."""

    examples: Examples
    evaluation: dict[str, Examples]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> Problem:
        """The problem of `recipe`, read from disk; raises DataError for missing data, InvalidInput for unfit sizes."""
        loaded = data.load(recipe.data)
        sizes = layer_sizes(recipe.model, loaded.features, loaded.classes)
        evaluation = {"test": Examples(loaded.test_x, loaded.test_y)}
        if not recipe.validation:
            return cls(Examples(loaded.train_x, loaded.train_y), evaluation, sizes)
        order = torch.randperm(
            len(loaded.train_x), generator=generator(recipe.seed, "validation"), dtype=torch.int64, device="cpu"
        )
        held_out = round(recipe.validation * len(order))
        if not 0 < held_out < len(order):
            raise InvalidInput(
                f"validation {recipe.validation} of {len(order)} examples",
                "at least one example on each side",
                "Use 0 for none.",
            )
        evaluation["validation"] = Examples(loaded.train_x[order[:held_out]], loaded.train_y[order[:held_out]])
        return cls(Examples(loaded.train_x[order[held_out:]], loaded.train_y[order[held_out:]]), evaluation, sizes)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Layer name to weight shape `(out, in)`."""
        return layer_shapes(self.sizes)
