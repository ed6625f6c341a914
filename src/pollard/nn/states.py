"""What a state dict says of a sparse layer: its values under `values`, and beside them where these stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pollard.errors import TopologyError
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology

# What stands for the topology in a state: its arrays, and the name of its pattern as bytes.
ARRAYS, PATTERN = ("row_pointers", "columns"), "pattern"


def of(topology: Topology) -> dict[str, Tensor]:
    """The entries that stand for `topology`: copies, as checkpoint readers write into a state in place, and queues move its memory."""
    name = torch.tensor(list(str(topology.pattern).encode()), dtype=torch.uint8, device="cpu")
    return {**{array: getattr(topology, array) for array in ARRAYS}, PATTERN: name}


def topology_of(shape: tuple[int, int], row_pointers: Tensor, columns: Tensor, pattern: Tensor | None) -> Topology:
    """The topology of a weight of `shape` that a state holds; raises TopologyError, PatternError where it is no such thing.

    States of earlier versions name no pattern: theirs was `vN` or unstructured, as the number of row groups says.
    """
    groups = len(row_pointers) - 1
    if groups < 1 or shape[0] % groups:
        raise TopologyError(
            f"{groups} row groups", f"a divisor of {shape[0]} rows", "Load the file into the layer it came from."
        )
    kind = Pattern(shape[0] // groups)
    if pattern is not None:
        kind = Pattern.parse(
            bytes(int(each) % 256 for each in pattern.cpu().flatten().tolist()).decode(errors="replace")
        )
    return Topology(shape, kind, row_pointers.cpu(), columns.cpu())


def has_weight(state: Mapping[str, Any], prefix: str, *, own_values: bool = True) -> bool:
    """Whether `state` has values and where they stand for the layer whose names begin with `prefix`, or nothing of them.

    own_values: whether its values are a parameter of their own, which a hook may make of another. Raises TopologyError for a
    part, or a dense weight: even where strict=False passes over what is missing, as the values would stay as they were.
    """
    expected = ["values", *ARRAYS] if own_values else [*ARRAYS]
    there = [name for name in expected if prefix + name in state]
    if not there and prefix + "weight" in state:
        raise TopologyError(
            "a dense weight for a sparse layer",
            "values, row_pointers and columns",
            "Load it into the dense model before sparsify_, or call densify_ first.",
        )
    if there and there != expected:
        raise TopologyError(
            f"{' and '.join(there)} alone",
            f"{', '.join(expected)}: what is kept, and where it stands",
            "Save and load model.state_dict(). Parameters alone may be copied into those of a model that keeps the same.",
        )
    return bool(there)
