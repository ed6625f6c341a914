"""A model that is sparse already, opened for a decision: its sparse layers dense again, in a copy that shares all else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from pollard.composites import matrices, put, shared_copy
from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern, PatternChoice
from pollard.formats.topology import Topology
from pollard.selection import LayerFilter, is_sparse, listed, select


class Opened(NamedTuple):
    """What is looked at in place of `model`, which layers of it, under which patterns, and within what they keep."""

    model: nn.Module
    layers: LayerFilter
    pattern: PatternChoice
    within: Mapping[str, Topology]


def opened(
    model: nn.Module, layers: LayerFilter, pattern: PatternChoice, within: Mapping[str, Topology] | None
) -> Opened:
    """`model` where the layers that `layers` selects are dense; else with its sparse ones, which None selects, dense in a copy.

    Raises InvalidInput where it selects dense and sparse layers together.
    """
    sparse: dict[str, Any] = {name: module for name, module in model.named_modules() if is_sparse(module)}
    chosen = list(sparse) if layers is None else []
    if sparse and layers is not None:
        names = select({**sparse, **matrices(model)}, layers)
        chosen = [name for name in names if name in sparse]
        if 0 < len(chosen) < len(names):
            raise InvalidInput(
                f"layers that are sparse, {listed(chosen)}, and dense ones, {listed(set(names) - set(chosen))}, in one call",
                "layers that are all dense, or all sparse already",
                "Prune them in two calls, with a density each.",
            )
    if not chosen:
        return Opened(model, layers, pattern, within or {})
    kept: dict[str, Topology] = {name: sparse[name].topology for name in chosen}
    own = {name: topology.pattern for name, topology in kept.items()}
    return Opened(
        _dense_again(model, chosen), chosen, own if pattern in ("unstructured", Pattern()) else pattern, within or kept
    )


def _dense_again(model: nn.Module, names: list[str]) -> nn.Module:
    if "" in names:
        raise InvalidInput(
            f"a model that is itself a {type(model).__name__}",
            "a module around it",
            "Wrap it, as in nn.Sequential(layer).",
        )
    apart = shared_copy(model, names[0])
    for name in names:
        layer: Any = apart.get_submodule(name)
        put(apart, layer, layer.to_dense())
    return apart
