"""What to keep of every layer, as one frozen value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pollard.coverage import Coverage
from pollard.errors import InvalidInput, StoreError
from pollard.formats.store import load_topologies, save_topologies
from pollard.formats.topology import Topology
from pollard.selection import counted, listed, unmatched

if TYPE_CHECKING:
    from pollard.tables import PrintedTable


_COLUMNS = ("layer", "shape", "pattern", "density", "kept")


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Mapping[str, Topology]):
    """Layer name -> topology, with how it was decided.

    criterion, allocation: their names, None for a plan made by hand. asked: the density that was asked for.
    updated: new values `(nnz,)` of layers whose kept weights the criterion changed, in the order of their topology.
    coverage: what part of its model the plan covers, None where it was made without one.
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
    coverage: Coverage | None = None

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
        told = (self.criterion, self.allocation, self.asked, dict(self.updated), self.coverage)
        return type(self), (dict(self.topologies), *told)

    def __getitem__(self, name: str) -> Topology:
        return self.topologies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.topologies)

    def __len__(self) -> int:
        return len(self.topologies)

    def __repr__(self) -> str:
        layers = "1 layer" if len(self) == 1 else f"{len(self)} layers"
        left = self.coverage.left if self.coverage else {}
        dense = f"; left dense: {counted(left)}" if left else ""
        return f"Plan({layers}, {self.nnz} of {self.weights} weights kept, density {self.density:.4g}{dense})"

    def __rich__(self) -> PrintedTable:
        return self.table()

    def _repr_html_(self) -> str:
        from pollard.tables import html_table  # here: importing pollard stays light

        return html_table(_COLUMNS, self._rows(), title=self._title(), note=str(self.coverage or ""))

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

    def table(self) -> PrintedTable:
        """A table that prints: one row per layer, a total, what has collapsed marked so, and what the plan leaves dense."""
        from pollard.tables import PrintedTable  # here: importing pollard stays light

        caption = str(self.coverage) if self.coverage else None
        table = PrintedTable(*_COLUMNS[:3], title=self._title(), caption=caption)
        for column in _COLUMNS[3:]:
            table.add_column(column, justify="right")
        *rows, total = self._rows()
        for row, topology in zip(rows, self.values(), strict=True):
            table.add_row(*row, style=None if topology.nnz else "bold red")
        table.add_section()
        table.add_row(*total, style="bold")
        return table

    def _title(self) -> str:
        told = {"criterion": self.criterion, "allocation": self.allocation, "asked": self.asked}
        text = ", ".join(f"{key} {value}" for key, value in told.items() if value is not None)
        return f"Plan: {text}" if text else "Plan"

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """One for each layer, and the total."""
        rows = [
            (
                name or "(root)",
                f"{topology.shape[0]} x {topology.shape[1]}",
                str(topology.pattern),
                f"{topology.density:.4f}",
                f"{topology.nnz:,}" if topology.nnz else "0 (collapsed)",
            )
            for name, topology in self.items()
        ]
        return [*rows, ("total", f"{self.weights:,} weights", "", f"{self.density:.4f}", f"{self.nnz:,}")]

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
            coverage = Coverage.from_dict(metadata["coverage"]) if metadata.get("coverage") else None
            return cls(topologies, **told, updated=updated, coverage=coverage)
        except InvalidInput as error:
            raise StoreError(f"{path} with {error.got}", error.expected, "Save the plan again.") from error

    def _metadata(self) -> dict[str, Any]:
        told = {"criterion": self.criterion, "allocation": self.allocation, "asked": self.asked}
        return told | ({"coverage": self.coverage.to_dict()} if self.coverage else {})


def collapse_message(plan: Plan) -> str:
    """What to say of a plan in which layers keep nothing."""
    return (
        f"nothing is kept of {listed(plan.collapsed)} at density {plan.asked}: no signal passes. "
        "Raise the density, pass min_density=, or use allocation='erk'."
    )
