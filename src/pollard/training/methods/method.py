"""A method of sparse training, made of pieces: when to update, how much to drop, what density to hold, drop and grow rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pollard.arguments import nearest, require_untaken
from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern
from pollard.pruning.allocation import ALLOCATIONS, DECIDING, SHAPES, reads
from pollard.training.methods import drop as drops
from pollard.training.methods import grow as grows
from pollard.training.methods.change import Change
from pollard.training.methods.drop import Drop
from pollard.training.methods.grow import Grow, Start
from pollard.training.schedules import Schedule, constant
from pollard.training.weights import Weight

Weights = Mapping[str, Weight]
# Layer name to the grains to keep in all.
Targets = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What decides a topology over time; the same object serves compressed and masked storage.

    every, start, end: an update replaces or follows step `start`, and every `every`-th after it up to `end`; steps count
    from 1. fraction: of a layer's grains, how many each update exchanges. density: of all weights at each step; None
    holds what there is. allocation: how a density that moves is shared out among layers; "global" by magnitude.
    drop, grow, starting: the rules. share: moves counts between layers, from what they would hold.
    window, decay: of how many last steps growth looks at the passes, and how much less it counts each step ago.
    scores_gradient: whether drop looks at the gradients of what is kept.
    dense_memory: hold something of the size of the dense weight, where a method is published so.
    instead_of_step: an update takes the place of the optimizer's step. anew: what an update drops, it never grows again,
    which saves looking for it. steps: of the training that the schedules were laid out over, 0 where unknown. cite: key in
    `citations()`.

    At an update a layer of n grains with target T keeps `min(n, T) - round(fraction * min(n, T))` of them, then grows to T.
    """

    name: str
    cite: str
    every: int
    start: int = 0
    end: int
    fraction: Schedule = field(default=constant(0.0))
    density: Schedule | None = None
    allocation: str = "erk"
    drop: Drop = drops.by_magnitude
    grow: Grow = grows.at_random
    starting: Start = grows.from_zero
    window: int = 0
    decay: float = 1.0
    scores_gradient: bool = False
    dense_memory: bool = False
    instead_of_step: bool = False
    anew: bool = False
    steps: int = 0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InvalidInput(
                f"an update every {self.every} steps",
                "at least 1",
                "Published choices: 100 to 1500; 0 is the method's own.",
            )
        for fraction in (self.fraction(0), self.fraction(self.first)):
            if not 0.0 <= fraction <= 1.0:
                raise InvalidInput(
                    f"a fraction of {fraction}", "a fraction in [0, 1]", "Published choices: 0.1 to 0.5."
                )
        # One that there is not is refused where it is first asked.
        by = reads(ALLOCATIONS[self.allocation]) if self.allocation in ALLOCATIONS else SHAPES
        if self.density is not None and by not in (SHAPES, DECIDING):
            raise InvalidInput(
                f"allocation {self.allocation!r}, which asks for scores of {by}, for a density that moves",
                "one by shapes, or global by magnitude",
                f"Use {self.allocation} with a method whose density stays, or with pollard.prune.",
            )

    @property
    def resizes(self) -> bool:
        """Whether a layer may come to keep more or fewer weights than before; DistributedDataParallel cannot follow that."""
        return self.density is not None

    @property
    def remembers(self) -> bool:
        """Whether it holds the dense weight from the start, as what the weights are that are not kept."""
        return False

    @property
    def sees_all(self) -> bool:
        """Whether an update computes the gradients of all weights, by blocks: dense products, in memory of their own."""
        return self.window > 0

    @property
    def first(self) -> int:
        """The step of the first update."""
        return self.start or self.every

    def due(self, step: int) -> bool:
        """Whether an update belongs to this step, counted from 1."""
        return self.first <= step <= self.end and (step - self.first) % self.every == 0

    def next_due(self, step: int) -> int | None:
        """The first step after `step` that has an update."""
        following = self.first if step < self.first else step + self.every - (step - self.first) % self.every
        return following if following <= self.end else None

    def last_due(self, step: int) -> int:
        """The last step up to `step` that has an update; 0 where none has."""
        passed = min(step, self.end) - self.first
        return 0 if passed < 0 else self.first + passed // self.every * self.every

    def watches(self, step: int) -> bool:
        """Whether growth needs the passes of this step."""
        due = self.next_due(step - 1)
        return self.window > 0 and due is not None and (due - step < self.window or self.dense_memory)

    def counts(self, weights: Weights, targets: Targets, fraction: float) -> dict[str, tuple[int, int]]:
        """Grains that stay and grains afterwards, by layer."""
        found = {}
        for name, weight in weights.items():
            least = min(weight.topology.grains, targets[name])
            found[name] = (least - round(fraction * least), targets[name])
        return found

    def exchange(self, change: Change) -> tuple[Tensor, Tensor]:
        """Which grains stay, bool `(grains,)`, and positions of those that come, ascending."""
        stays = self.drop(change)
        return stays, self.grow(change, stays, change.target - int(np.count_nonzero(stays.numpy())))

    def require(self, patterns: Mapping[str, Pattern]) -> None:
        """Raises PatternError where layers of these patterns, by name, cannot be trained so."""
        self.require_resizable(patterns)
        if self.density is not None and self.allocation == "global":
            require_one_pattern(patterns)

    def require_resizable(self, patterns: Mapping[str, Pattern]) -> None:
        """Raises PatternError where layers come to keep more or fewer weights, and a pattern says how many it keeps."""
        if self.resizes:
            require_free(patterns, f"method {self.name}, by which layers come to keep more or less")

    def begin(self, weights: Weights, generator: Callable[[str], torch.Generator]) -> dict[str, tuple[Tensor, Tensor]]:
        """Changes to the first topologies, by layer, before any step."""
        del weights, generator
        return {}

    def before_step(self, weights: Weights, step: int) -> None:
        """What the method adds to the gradients of a step."""

    def after_update(self, weights: Weights, step: int) -> None:
        """What the method does once all layers have moved."""

    def step_cost(self, forward: float, dense: float) -> float:
        """Multiply-adds of a step, an example, as papers count them: forward, and twice that for both gradients."""
        del dense
        return 3.0 * forward

    def update_cost(self, forward: float, dense: float) -> float:
        """Of a step with an update."""
        return self.step_cost(forward, dense)


def require_one_pattern(patterns: Mapping[str, Pattern]) -> None:
    """Raises PatternError where layers that give grains to each other have grains of different sizes."""
    found = sorted(set(map(str, patterns.values())))
    if len(found) > 1:
        raise PatternError(
            f"layers of patterns {', '.join(found)}",
            "one pattern for all, as layers give grains to each other",
            "Give all layers one pattern, or take an allocation other than global.",
        )


def require_free(patterns: Mapping[str, Pattern], what: str) -> None:
    """Raises PatternError where layers, by name, are to keep N of every M, which `what` cannot."""
    for name, pattern in patterns.items():
        if pattern.m:
            raise PatternError(
                f"pattern {pattern} for {name!r} with {what}",
                "unstructured, vN or bRxC; or a method that exchanges within every M: set, rigl, snfs, mest, static",
                "Choose another pattern= or method.",
            )


Builder = Callable[..., Method]
METHODS: dict[str, Builder] = {}


def method(builder: Builder) -> Builder:
    """Makes `builder(density, steps, **options)` a member of `METHODS`, under its name with hyphens.

    Raises InvalidInput for a name that a builder of another module has.
    """
    name = method_name(builder)
    require_untaken("method", name, builder, METHODS)
    METHODS[name] = builder
    return builder


def method_name(builder: Callable[..., Any]) -> str:
    """What a method is called: `set_` is set, `top_kast` is top-kast."""
    return builder.__name__.rstrip("_").replace("_", "-")


def options_of(builder: Builder) -> dict[str, Any]:
    """The options of a method by name, with their defaults.

    >>> from pollard.training.methods.rigl import rigl
    >>> options_of(rigl)
    {'every': 0, 'fraction': 0.3, 'until': 0.75}
    """
    found = signature(builder).parameters.values()
    return {each.name: each.default for each in found if each.kind is each.KEYWORD_ONLY}


def require_options(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InvalidInput for the first option of those `given` that method `name` does not have among the `known`."""
    known = list(known)
    for option in given:
        if option not in known:
            raise InvalidInput(
                f"option {option!r} of method {name}",
                "one of " + (", ".join(known) or "none: it has no options"),
                f"{nearest(option, known)} Leave it out for the method's own choice.".lstrip(),
            )


def often(every: int, published: int, span: int) -> int:
    """Steps between updates: `every`, or where that is 0 the `published` number, or a tenth of their `span` if that is less.

    >>> often(0, 100, span=45_000), often(0, 100, span=75), often(20, 100, span=75)
    (100, 7, 20)
    """
    return every or min(published, max(1, span // 10))


def update_steps(every: int, epoch: int | None, steps: int) -> int:
    """Steps between updates: `every`, or where that is 0 an epoch, or a hundredth of `steps`."""
    return every or epoch or max(1, steps // 100)
