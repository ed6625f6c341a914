"""Plans of networks that are pruned already: by zeros in their weights, by `torch.nn.utils.prune`, or by masks at hand."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pollard.composites import composed, matrices, refuse_dense
from pollard.coverage import Coverage
from pollard.errors import InvalidInput, NothingMatched
from pollard.formats.pattern import COLUMNS, ROWS, Pattern
from pollard.formats.topology import Topology
from pollard.pruning.plan import Plan
from pollard.selection import (
    LayerFilter,
    masked_by_torch,
    refuse_meta,
    refuse_tied,
    refuse_unready,
    require_prunable,
    select,
    unmatched,
)

# Runs of m weights that keep n each may be chance, if they are no more.
FEW = 32
# What masks are called in state dicts, after the name of their layer.
_SUFFIXES = (".weight_mask", ".weight", ".mask")


def plan_from_zeros(model: nn.Module, *, layers: LayerFilter = None, max_density: float = 0.5) -> Plan:
    """The plan that keeps what is not zero, of each linear layer of `model` of which at most `max_density` is not.

    Of a layer under `torch.nn.utils.prune` it keeps what the mask does, whatever the weights. Each layer gets the coarsest
    pattern that fits it exactly. A layer that is all zero stays dense: nobody can tell whether it was pruned or starts so.
    layers: look at these only, as name patterns or a callable `(name, module) -> bool`.
    Raises NothingMatched where no layer is so sparse, InvalidInput for weights that are tied, lazy or made by another hook.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with torch.no_grad():
    ...     model[0].weight.copy_(torch.eye(2).repeat(1, 2).repeat_interleave(2, 0)).shape
    torch.Size([4, 4])
    >>> plan = plan_from_zeros(model)
    >>> plan["0"]
    Topology(shape=(4, 4), pattern='v2', grains=4, density=0.5)
    """
    linear = matrices(model) or require_prunable(model)
    refuse_dense(model, layers)
    names = select(linear, layers)
    refuse_tied(composed(model, names), names)
    refuse_unready(composed(model, names), names, masks=True)
    refuse_meta({name: linear[name] for name in names})
    found, densities = {}, {}
    for name in names:
        mask = _kept(linear[name])
        densities[name] = float(mask.count_nonzero()) / max(1, mask.numel())
        if 0 < densities[name] <= max_density:
            found[name] = _coarsest(mask)
    if not found:
        told = ", ".join(f"{name or '(root)'!r} {density:.3g}" for name, density in list(densities.items())[:5])
        raise NothingMatched(
            f"a model none of whose linear layers is sparse: densities {told}",
            f"a layer of which at most {max_density} and not nothing is kept",
            "Raise max_density, or decide what to keep with pollard.prune(model, ...).",
        )
    return Plan(found, coverage=Coverage.of(model, found))


def plan_from_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> Plan:
    """The plan that keeps what `masks` keep: layer name to a mask of the shape of its weight, True or 1 = keep.

    A name may end as in a state dict: `fc.weight`, `fc.weight_mask` or `fc.mask` are of layer `fc`. Each layer gets the
    coarsest pattern that fits its mask exactly.
    Raises NothingMatched for a name that is no linear layer of `model`, InvalidInput for a mask of another shape, of other
    numbers than 0 and 1, or two masks of one layer.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> plan_from_masks(model, {"0.weight": torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])})
    Plan(1 layer, 3 of 8 weights kept, density 0.375)
    """
    linear, found = matrices(model) or require_prunable(model), dict[str, Topology]()
    for key, mask in masks.items():
        name = _layer_of(model, key, linear)
        if name in found:
            raise InvalidInput(f"two masks of layer {name!r}", "one", f"Leave one out: {key!r} is the second.")
        shape = (linear[name].out_features, linear[name].in_features)
        if tuple(mask.shape) != shape or not ((mask == 0) | (mask == 1)).all():
            raise InvalidInput(
                f"a mask {key!r} of shape {tuple(mask.shape)}, {mask.dtype}",
                f"shape {shape}, that of the weight, and True or 1 where it is kept, False or 0 elsewhere",
                "Masks have the shape of the weight, rows are outputs.",
            )
        found[name] = _coarsest(mask != 0)
    return Plan(found, coverage=Coverage.of(model, found))


def _kept(layer: nn.Linear) -> Tensor:
    mask = layer.get_buffer("weight_mask") if "weight" in masked_by_torch(layer) else layer.weight.detach()
    return (mask != 0).cpu()


def _coarsest(mask: Tensor) -> Topology:
    mask = mask.cpu()
    shape = (mask.shape[0], mask.shape[1])
    pattern = next((each for each in _CANDIDATES if each.fits(shape) and _holds(each, mask)), Pattern())
    return Topology.from_mask(mask, pattern)


# From the largest grain to the smallest, of those as large the one with more rows; then what single weights may keep.
_CANDIDATES = sorted(
    (Pattern(rows, columns) for rows in ROWS for columns in COLUMNS if rows * columns > 1),
    key=lambda each: (-each.size, -each.rows),
) + [Pattern(n=n, m=m) for m in (2, 4, 8, 16, 32) for n in range(1, m)]


def _holds(pattern: Pattern, mask: Tensor) -> bool:
    """Whether `mask` keeps or drops whole grains, or n of every m."""
    if pattern.m:
        runs = mask.reshape(-1, pattern.m)
        return len(runs) >= FEW and bool((runs.sum(1) == pattern.n).all())
    kept = pattern.grain_sum(mask.int())
    return bool(((kept == 0) | (kept == pattern.size)).all())


def _layer_of(model: nn.Module, key: str, linear: Mapping[str, nn.Linear]) -> str:
    bare = next((key.removesuffix(suffix) for suffix in _SUFFIXES if key.endswith(suffix)), key)
    for name in (key, bare):
        if name in linear:
            return name
    refuse_dense(model, [bare])
    raise unmatched(bare, linear)


__all__ = ["plan_from_masks", "plan_from_zeros"]
