"""What to keep of every layer, as one frozen value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pollard.errors import InvalidInput, StoreError
from pollard.formats.store import load_topologies, save_topologies
from pollard.formats.topology import Topology
from pollard.selection import unmatched

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Mapping[str, Topology]):
    """Layer name -> topology, with how it was decided.

    criterion, allocation: their names, None for a plan made by hand. asked: the density that was asked for.
    updated: new values `(nnz,)` of layers whose kept weights the criterion changed, in the order of their topology.
    Raises InvalidInput for a plan of no layer, or of something else than topologies, and for values that do not fit.

    >>> from pollard.formats.pattern import Pattern
    >>> plan = Plan({"fc1": Topology.full((8, 4), Pattern()), "fc2": Topology.from_mask(Tensor([[1, 0, 0, 0]]) > 0)})
    >>> plan
    Plan(2 layers, 33 of 36 weights kept, density 0.9167)
    >>> plan["fc2"].density, plan.mask("fc2")
    (0.25, tensor([[ True, False, False, False]]))
    """

    topologies: Mapping[str, Topology]
    criterion: str | None = None
    allocation: str | None = None
    asked: float | None = None
    updated: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.topologies or not all(isinstance(topology, Topology) for topology in self.topologies.values()):
            raise InvalidInput(
                f"a plan of {dict(self.topologies)!r}",
                "at least one layer name with its Topology",
                "prune_at_init makes a plan.",
            )
        for name, values in self.updated.items():
            kept = self.topologies[name].nnz if name in self.topologies else 0
            if values.shape != (kept,):
                raise InvalidInput(
                    f"new values of shape {tuple(values.shape)} for layer {name!r}",
                    f"one for each of its {kept} kept weights",
                    "Give values in the order of the topology.",
                )
        object.__setattr__(self, "topologies", MappingProxyType(dict(self.topologies)))
        object.__setattr__(self, "updated", MappingProxyType(dict(self.updated)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy can be neither copied nor pickled.
        return type(self), (dict(self.topologies), self.criterion, self.allocation, self.asked, dict(self.updated))

    def __getitem__(self, name: str) -> Topology:
        return self.topologies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.topologies)

    def __len__(self) -> int:
        return len(self.topologies)

    def __repr__(self) -> str:
        layers = "1 layer" if len(self) == 1 else f"{len(self)} layers"
        return f"Plan({layers}, {self.nnz} of {self.weights} weights kept, density {self.density:.4g})"

    def __rich__(self) -> Table:
        return self.table()

    @property
    def weights(self) -> int:
        """Weights of the dense layers."""
        return sum(topology.shape[0] * topology.shape[1] for topology in self.values())

    @property
    def nnz(self) -> int:
        """Weights kept."""
        return sum(topology.nnz for topology in self.values())

    @property
    def density(self) -> float:
        """Fraction of the weights of these layers that is kept."""
        return self.nnz / self.weights

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Layers of which nothing is kept."""
        return tuple(name for name, topology in self.items() if topology.nnz == 0)

    def mask(self, name: str) -> Tensor:
        """The mask `(out, in)` of a layer, bool, True = keep: one byte per dense weight, for small layers and tests.

        Raises NothingMatched for a layer that is not in the plan.
        """
        if name not in self:
            raise unmatched(name, self)
        return self[name].mask()

    def table(self) -> Table:
        """A rich table: one row per layer, a total, and what has collapsed marked so."""
        from rich.table import Table  # here: importing pollard stays light

        told = ", ".join(f"{key} {value}" for key, value in self._metadata().items() if value is not None)
        table = Table("layer", "shape", "pattern", title=f"Plan: {told}" if told else "Plan")
        table.add_column("density", justify="right")
        table.add_column("kept", justify="right")
        for name, topology in self.items():
            shape = f"{topology.shape[0]} x {topology.shape[1]}"
            lost = topology.nnz == 0
            kept = "0 (collapsed)" if lost else f"{topology.nnz:,}"
            style = "bold red" if lost else None
            table.add_row(name or "(root)", shape, str(topology.pattern), f"{topology.density:.4f}", kept, style=style)
        table.add_section()
        table.add_row("total", f"{self.weights:,} weights", "", f"{self.density:.4f}", f"{self.nnz:,}", style="bold")
        return table

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the plan to one file, atomically; raises StoreError where that fails."""
        save_topologies(path, dict(self), self._metadata(), self.updated)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """The plan that `save` wrote; raises StoreError for a file that is missing, damaged or no plan."""
        topologies, updated, metadata = load_topologies(path)
        if not topologies:
            raise StoreError(f"{path} without a layer", "a saved plan", "Save the plan again.")
        told = {key: metadata.get(key) for key in ("criterion", "allocation", "asked")}
        try:
            return cls(topologies, **told, updated=updated)
        except InvalidInput as error:
            raise StoreError(f"{path} with {error.got}", error.expected, "Save the plan again.") from error

    def _metadata(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "allocation": self.allocation, "asked": self.asked}
