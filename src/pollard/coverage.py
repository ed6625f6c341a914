"""How much of a model is sparse: which of its weight layers, what share of its parameters, and what is left dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from torch import nn

from pollard.composites import holders, parts_of
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.selection import counted, is_sparse, kind_of, weight_layers


@dataclass(frozen=True, slots=True)
class Coverage:
    """What part of a model sparse layers make up, in layers and in parameters.

    sparse: layers that are sparse, or planned to be. layers: all layers with a weight. left: how many stay dense, by kind.
    parameters: of the model if it were dense, biases and all. covered: weights of the sparse layers, if they were dense.
    kept: weights that they keep.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 10, bias=False))
    >>> print(Coverage.of(model, {"2": Topology.full((10, 16))}))
    sparse 1 of 2 weight layers, 80.0 % of parameters; left dense: Conv2d
    """

    sparse: int
    layers: int
    left: Mapping[str, int]
    parameters: int
    covered: int
    kept: int

    @classmethod
    def of(cls, model: nn.Module, plan: Mapping[str, Topology] | None = None) -> Self:
        """What of `model` is sparse, and what `plan` would make sparse of what is not."""
        whole, layers = holders(model, plan or ()), dict[str, nn.Module]()
        for name, layer in weight_layers(model).items():
            layers |= parts_of(name, layer) if name in whole else {name: layer}
        already: dict[str, Any] = {name: layer for name, layer in layers.items() if is_sparse(layer)}
        planned = {name: topology for name, topology in (plan or {}).items() if name in layers and name not in already}
        sizes = {name: layer.in_features * layer.out_features for name, layer in already.items()}
        kept = {name: round(layer.density * sizes[name]) for name, layer in already.items()}
        # Of what holds the parameters now, and what of it a plan would leave.
        remaining = kept | {name: topology.nnz for name, topology in (plan or {}).items() if name in already}
        held = sum(parameter.numel() for parameter in model.parameters() if not _is_lazy(parameter))
        # A compressed layer holds what it keeps; a masked one holds all.
        held += sum(sizes[name] - kept[name] for name, layer in already.items() if not hasattr(layer, "mask"))
        return cls(
            sparse=len(already) + len(planned),
            layers=len(layers),
            left=dict(Counter(kind_of(each) for name, each in layers.items() if name not in already | planned)),
            parameters=held,
            covered=sum(sizes.values()) + sum(topology.shape[0] * topology.shape[1] for topology in planned.values()),
            kept=sum(remaining.values()) + sum(topology.nnz for topology in planned.values()),
        )

    @property
    def share(self) -> float:
        """The share of the dense model's parameters that are weights of its sparse layers."""
        return self.covered / max(1, self.parameters)

    @property
    def density(self) -> float:
        """Fraction of the weights of the sparse layers that is kept."""
        return self.kept / max(1, self.covered)

    @property
    def model_density(self) -> float:
        """Fraction of all parameters of the model that is kept: what is left dense counts as kept.

        >>> Coverage(sparse=1, layers=2, left={"LSTM": 1}, parameters=100, covered=50, kept=5).model_density
        0.55
        """
        return (self.parameters - self.covered + self.kept) / max(1, self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """The fields and the three fractions, for JSON."""
        fractions = {"share": self.share, "density": self.density, "model_density": self.model_density}
        return asdict(self) | fractions

    @classmethod
    def from_dict(cls, told: object) -> Self:
        """What `to_dict` gave; raises InvalidInput where it is something else."""
        names = [entry.name for entry in fields(cls)]
        if not isinstance(told, Mapping) or not all(name in told for name in names):
            raise InvalidInput(f"coverage {told!r}", "a mapping with " + ", ".join(names), "Leave it out.")
        left, counts = told["left"], {name: told[name] for name in names if name != "left"}
        numbers = [*counts.values(), *(left.values() if isinstance(left, Mapping) else [None])]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise InvalidInput(f"coverage {told!r}", "whole numbers, 0 or above", "Leave it out.")
        return cls(**counts, left=dict(left))

    def __str__(self) -> str:
        told = f"sparse {self.sparse} of {self.layers} weight layers, {100 * self.share:.1f} % of parameters"
        return f"{told}; left dense: {counted(self.left)}" if self.left else told


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


__all__ = ["Coverage"]
