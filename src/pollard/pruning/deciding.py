"""What a decision is made of, whether weights are there or come some rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.pruning.allocation import Allocation, allocation_name, reads
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA, Criterion
from pollard.pruning.measurements import MEASUREMENTS
from pollard.pruning.network import Network
from pollard.pruning.plan import Plan
from pollard.pruning.rounds import Finished, RoundsFile
from pollard.streamed.tensor import StreamedTensor

Measured = dict[str, dict[str, Tensor]]
# What rounds have left so far, and what the last one sees of the network.
Left = TypeVar("Left")
Seen = TypeVar("Seen")
# What tells the one to a later call: named tensors, and what is JSON; None where nothing does.
Told = tuple[dict[str, Tensor], dict[str, Any]] | None


@dataclass(frozen=True, slots=True, eq=False)
class Decision(ABC, Generic[Left, Seen]):
    """All that is fixed while rounds go by."""

    rule: Criterion
    allocate: Allocation
    network: Network
    layers: dict[str, Layer]
    within: Mapping[str, Topology]
    recover: bool
    invert: bool
    resume: Path | None = None
    forecast: Callable[[Any], None] | None = None
    # Where the last cut fell among scores of zero.
    ties: dict[str, tuple[int, int]] = field(default_factory=dict)

    def plan(self, densities: list[float], asked: float) -> Plan:
        """The plan after the last of `densities`, one a round."""
        self.require()
        file, draw = self.rounds_file(densities), self.network.generator
        begun = file.read(draw)
        to_do = list(enumerate(densities, 1))[begun.rounds if begun else 0 :]
        with self.watched([density for _, density in to_do]):
            with self.network.undisturbed():
                left = self.begin(begun)
                for number, density in to_do[:-1]:
                    left, told = self.round(left, density)
                    if told is not None:
                        file.write(Finished(number, *told), draw)
                seen = self.see(left, densities[-1])
            topologies, updated = self.choose(left, densities[-1], seen)
        file.remove()
        return Plan(
            topologies,
            criterion=self.rule.name,
            allocation=allocation_name(self.allocate),
            asked=asked,
            updated=updated,
        )

    def require(self) -> None:
        """Raises InvalidInput for what cannot be decided so."""

    def watched(self, densities: list[float]) -> AbstractContextManager[Any]:
        """Around the rounds that are to do, to these densities."""
        del densities
        return nullcontext()

    @abstractmethod
    def begin(self, begun: Finished | None) -> Left:
        """What there is before the first round, or what those that a call before has finished left."""

    @abstractmethod
    def round(self, left: Left, density: float) -> tuple[Left, Told]:
        """What a round leaves of what the round before has left."""

    @abstractmethod
    def see(self, left: Left, density: float) -> Seen:
        """What the last round sees of the network, which is as it was before when that is chosen from."""

    @abstractmethod
    def choose(self, left: Left, density: float, seen: Seen) -> tuple[Mapping[str, Topology], Mapping[str, Tensor]]:
        """The topologies at last, and new values where the criterion gives any."""

    def rounds_file(self, densities: list[float]) -> RoundsFile:
        """Where the rounds of this decision are kept."""
        if self.resume is not None and len(densities) == 1:
            raise InvalidInput(
                f"resume={str(self.resume)!r} for one round", "more, of which some may be finished", "Leave it out."
            )
        made = {"criterion": self.rule.name, "allocation": allocation_name(self.allocate), "densities": densities}
        kind = {"recover": self.recover, "invert": self.invert}
        layers = {name: [list(layer.matrix), str(layer.pattern)] for name, layer in self.layers.items()}
        within = {name: topology.fingerprint for name, topology in self.within.items()}
        weights = {name: _looks(weight) for name, weight in self.network.weights.items()} if self.resume else {}
        return RoundsFile(self.resume, {**made, **kind, "layers": layers, "within": within, "weights": weights})

    @property
    def weighing(self) -> Criterion | None:
        """The criterion whose scores the allocation reads, where it names one of its own."""
        return CRITERIA.get(reads(self.allocate))

    def measured(self) -> Measured:
        """What the criteria need to know of the network as it is now, by need and layer."""
        needs = (*self.rule.needs, *(self.weighing.needs if self.weighing else ()))
        return {need: MEASUREMENTS[need](self.network) for need in dict.fromkeys(needs) if need in MEASUREMENTS}

    def given(self, rule: Criterion, name: str, measured: Measured, *, keep: bool) -> dict[str, Any]:
        """What a criterion is called with for a layer; unless it is to `keep` them, measurements are let go."""
        own = {"weight": self.network.weights[name], "generator": self.network.generator}
        found = {need: by_layer[name] if keep else by_layer.pop(name) for need, by_layer in measured.items()}
        return {need: (own | found)[need] for need in rule.needs}


def kept_positions(topologies: Mapping[str, Topology]) -> dict[str, Tensor]:
    """Tensors that tell them, to be written down."""
    return {f"{name}.positions": topology.positions() for name, topology in topologies.items()}


def topologies_of(tensors: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> dict[str, Topology]:
    """The topologies that `kept_positions` told."""
    return {
        name: Topology.from_positions(layer.matrix, layer.pattern, tensors[f"{name}.positions"])
        for name, layer in layers.items()
    }


def _looks(weight: Tensor) -> str:
    """What tells a weight from others: of a streamed one what it is made of, and its first row."""
    if isinstance(weight, StreamedTensor):
        return f"{weight.source} {float(weight.block(0, 1).double().sum())!r}"
    return repr(float(weight.double().sum()))


__all__ = ["Decision", "Measured", "Told", "kept_positions", "topologies_of"]
