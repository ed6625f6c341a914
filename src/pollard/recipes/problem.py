"""What a recipe's network has to learn: examples, split, in the shape that it takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pollard import data
from pollard.errors import InvalidInput
from pollard.networks import Ends, is_fully_connected
from pollard.recipes.models import weight_shapes
from pollard.recipes.recipe import Recipe
from pollard.training import Examples, generator
from pollard.training.augmentation import require_images


@dataclass(frozen=True, eq=False)
class Problem:
    """Examples to train on, sets to evaluate on by name, the shape of one input and how many classes, and the network's name."""

    examples: Examples
    evaluation: dict[str, Examples]
    ends: Ends
    model: str

    @classmethod
    def of(cls, recipe: Recipe) -> Problem:
        """The problem of `recipe`, read from disk; raises DataError for missing data, InvalidInput for unfit sizes."""
        loaded = data.load(recipe.data)
        # Linear layers alone take rows, all other networks what the data are: images, where they are that.
        shape = (loaded.features,) if is_fully_connected(recipe.model) else loaded.shape
        require_images(recipe.augment, shape)
        found = cls(
            Examples(loaded.train_x.unflatten(1, shape), loaded.train_y),
            {"test": Examples(loaded.test_x.unflatten(1, shape), loaded.test_y)},
            Ends(shape, loaded.classes),
            recipe.model,
        )
        found.require_fit()
        return found._held_out(recipe) if recipe.validation else found

    @property
    def device(self) -> torch.device:
        """Where its examples are."""
        return self.examples.x.device

    def on(self, device: torch.device) -> Problem:
        """This, with all examples on `device`."""
        evaluation = {name: Examples(x.to(device), y.to(device)) for name, (x, y) in self.evaluation.items()}
        x, y = self.examples
        return replace(self, examples=Examples(x.to(device), y.to(device)), evaluation=evaluation)

    def require_fit(self) -> None:
        """Raises InvalidInput where the network does not fit the data."""
        assert self.shapes

    def _held_out(self, recipe: Recipe) -> Problem:
        """This, with a part of the examples to be evaluated on as ``validation`` instead of trained on."""
        x, y = self.examples
        order = torch.randperm(len(x), generator=generator(recipe.seed, "validation"), dtype=torch.int64, device="cpu")
        held_out = round(recipe.validation * len(order))
        if not 0 < held_out < len(order):
            raise InvalidInput(
                f"validation {recipe.validation} of {len(order)} examples",
                "at least one example on each side",
                "Use 0 for none.",
            )
        chosen, left = order[:held_out], order[held_out:]
        evaluation = {**self.evaluation, "validation": Examples(x[chosen], y[chosen])}
        return replace(self, examples=Examples(x[left], y[left]), evaluation=evaluation)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name to shape `(rows, columns)` of every weight that can be pruned; raises InvalidInput where the network does not fit."""
        return weight_shapes(self.model, self.ends)
