"""A product of a convolution whose way is chosen by measurement, among some that give the same bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.products import tuning
from pollard.kernels.products.derived import forget, widths
from pollard.kernels.products.tuning import Choice, Decision
from pollard.kernels.products.workspace import trim

Call = Callable[..., Tensor]


class Tuned(ABC):
    """What a subclass computes by any of its `options`, the best guess first, with the grains of `topology`."""

    topology: Topology

    @abstractmethod
    def options(self) -> list[Choice]:
        """Choices worth measuring, the best guess first."""

    @abstractmethod
    def call(self, choice: Choice) -> Call:
        """The call by that choice."""

    @abstractmethod
    def spec_of(self, choice: Choice) -> KernelSpec:
        """The kernel for that choice."""

    @abstractmethod
    def describe(self, choice: Choice) -> str:
        """In words, for people."""

    @property
    @abstractmethod
    def work(self) -> int:
        """Multiply-adds, about."""

    @property
    @abstractmethod
    def key(self) -> str:
        """The kind of problem that a decision is remembered for."""

    def best(self, tensors: tuple[Tensor | None, ...]) -> Call:
        """The call that was fastest on `tensors`, or is known to be: what calls are given."""
        topology, options = self.topology, self.options()
        known = tuning.known(self.key, lambda: options)
        if known is None:
            before = widths(topology)
            known = tuning.decide(self.key, self.work, options, lambda choice: partial(self.call(choice), *tensors))
            forget(topology, widths(topology) - before - {known.choice.width})
            trim()
        return self.call(known.choice)

    def decision(self) -> Decision:
        """The choice that is known, and why; the first of all where none is."""
        options = self.options()
        return tuning.known(self.key, lambda: options) or tuning.decide(self.key, 0, options, None)


__all__ = ["Call", "Tuned"]
