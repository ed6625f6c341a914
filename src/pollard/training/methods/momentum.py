"""SNFS and sparse momentum: grow where a running mean of gradients is large; sparse momentum also moves weights between layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.training.methods import drop, grow
from pollard.training.methods.method import Method, Weights, method, often, require_one_pattern, update_steps
from pollard.training.schedules import cosine

# Of the exponential mean that is left out of the window, at most.
CUT = 0.05


@dataclass(frozen=True, kw_only=True)
class MomentumGrowth(Method):
    """Growth by the running mean of the dense gradient, over a window of steps."""

    def update_cost(self, forward: float, dense: float) -> float:
        """The gradient of all weights for each step of the window."""
        return 3.0 * forward + (1 if self.dense_memory else self.window) * dense

    def step_cost(self, forward: float, dense: float) -> float:
        """As of any sparse step; with a dense momentum, each step has a dense gradient."""
        return 2.0 * forward + (dense if self.dense_memory else forward)


@dataclass(frozen=True, kw_only=True)
class SparseMomentum(MomentumGrowth):
    """Layers share what has been dropped by the mean magnitude of the momentum of their weights."""

    @property
    def resizes(self) -> bool:
        """Layers take weights from one another."""
        return True

    def require(self, patterns: Mapping[str, Pattern]) -> None:
        """One pattern for all."""
        super().require(patterns)
        require_one_pattern(patterns)

    def before_step(self, weights: Weights, step: int) -> None:
        """Raises InvalidInput before an update where the optimizer keeps no momentum."""
        if self.due(step):
            for weight in weights.values():
                weight.momentum()

    def counts(self, weights: Weights, targets: dict[str, int], fraction: float) -> dict[str, tuple[int, int]]:
        """Each layer drops its fraction; all that is dropped is shared out anew, no layer beyond 99 % of what is free."""
        kept, most = {}, {}
        for name, weight in weights.items():
            topology = weight.topology
            total = topology.places
            gone = round(_limited(fraction, topology.density) * topology.grains)
            kept[name] = topology.grains - gone
            most[name] = max(gone, int(0.99 * (total - kept[name])))
        free = sum(targets.values()) - sum(kept.values())
        grown = shared_out(free, _shares(weights), most)
        return {name: (kept[name], kept[name] + grown[name]) for name in weights}


def _limited(fraction: float, density: float) -> float:
    # A nearly dense layer drops less: at most half of what it could grow back.
    return min(fraction, (1.0 - density) / (2.0 * density)) if density > 0.8 else fraction


def _shares(weights: Weights) -> dict[str, float]:
    shares = {}
    for name, weight in weights.items():
        momentum = weight.momentum()
        shares[name] = 0.0 if momentum is None or not momentum.numel() else float(momentum.abs().mean())
    total = sum(shares.values())
    return {name: share / total if total else 1.0 / len(shares) for name, share in shares.items()}


def shared_out(count: int, shares: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """`count` shared out in proportion to `shares`, none beyond its `most`; what is over goes to the others.

    >>> shared_out(10, {"a": 0.8, "b": 0.2, "c": 0.0}, {"a": 5, "b": 9, "c": 9})
    {'a': 5, 'b': 5, 'c': 0}
    """
    got = dict.fromkeys(shares, 0)
    while (left := count - sum(got.values())) > 0:
        open_to = [name for name in shares if got[name] < most[name]]
        if not open_to:
            raise InvalidInput(f"{count} weights to grow", f"at most {sum(most.values())}", "Lower the density.")
        total = sum(shares[name] for name in open_to)
        exact = {name: left * (shares[name] / total if total else 1 / len(open_to)) for name in open_to}
        for name in open_to:
            got[name] = min(most[name], got[name] + int(exact[name]))
        if count - sum(got.values()) == left:
            got[max(open_to, key=lambda name: exact[name])] += 1
    return got


def window_of(decay: float) -> int:
    """Steps after which an exponential mean has forgotten all but a twentieth.

    >>> window_of(0.9)
    29
    """
    length = 1
    while decay**length > CUT:
        length += 1
    return length


@method
def snfs(
    density: float,
    steps: int,
    *,
    every: int = 0,
    fraction: float = 0.3,
    until: float = 0.75,
    decay: float = 0.9,
    window: int = 0,
    dense_memory: bool = False,
) -> Method:
    """Grow where the exponential mean of the dense gradient is large; else as RigL.

    every: steps between updates; 0 for 100, or ten updates in a short run. decay: of the mean. window: how many
    steps back it looks, 0 for those that hold 95 % of it. The passes of these steps are kept, so that the mean is
    streamed by rows like a single gradient, and no dense momentum exists. dense_memory: hold the dense momentum of
    all steps, as published, at dense memory and a dense gradient each step.
    Source: as Evci et al. 2020 compare with Dettmers & Zettlemoyer, Sparse networks from scratch, 2019.

    >>> snfs(0.1, steps=2000).watches(72), snfs(0.1, steps=2000).watches(71)
    (True, False)
    """
    del density
    end = round(until * steps)
    every = often(every, 100, end)
    return MomentumGrowth(
        name="snfs",
        cite="dettmers2019sparse",
        every=every,
        end=end,
        fraction=cosine(fraction, end),
        drop=drop.by_magnitude,
        grow=grow.by_gradient,
        window=min(window or window_of(decay), every),
        decay=decay,
        dense_memory=dense_memory,
        instead_of_step=True,
    )


@method
def sparse_momentum(
    density: float,
    steps: int,
    *,
    epoch: int | None = None,
    every: int = 0,
    fraction: float = 0.5,
    decay: float = 0.9,
    window: int = 0,
    dense_memory: bool = False,
) -> Method:
    """Once an epoch half of each layer goes, and layers with large momentum get more of it back, where momentum is large.

    every: steps between updates; 0 for an `epoch`, or a hundredth of `steps`. The fraction falls along a cosine to 0 at
    the end. decay, window, dense_memory: of the momentum by which weights come, as of `snfs`.
    Source: Dettmers & Zettlemoyer, Sparse networks from scratch: faster training without losing performance, 2019.

    >>> sparse_momentum(0.1, steps=1000).every
    10
    """
    del density
    every = update_steps(every, epoch, steps)
    return SparseMomentum(
        name="sparse-momentum",
        cite="dettmers2019sparse",
        every=every,
        end=steps - 1,
        fraction=cosine(fraction, steps),
        drop=drop.by_magnitude,
        grow=grow.by_gradient,
        window=min(window or window_of(decay), every),
        decay=decay,
        dense_memory=dense_memory,
    )
