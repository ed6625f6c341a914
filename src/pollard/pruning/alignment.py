"""Hidden units put in another order, so that neighbours keep the same inputs: fewer weights are wasted on grains of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput, NothingMatched, PatternError
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.formats.waste import waste_factor
from pollard.selection import linear_layers, refuse_tied, refuse_unready, unmatched

# What takes each unit by itself, and what does so with numbers of its own for each.
_ELEMENTWISE = (
    nn.CELU, nn.Dropout, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
    nn.Tanhshrink,
)  # fmt: skip
_WITH_NUMBERS = (nn.BatchNorm1d, nn.LayerNorm, nn.PReLU)


@dataclass(frozen=True, slots=True)
class Alignment:
    """What became of a layer: its rows now are those that were at `order` `(out,)`.

    waste_before, waste_after: weights laid out over weights needed, when what was to be kept is laid on the pattern.
    """

    order: Tensor
    waste_before: float
    waste_after: float


def align_(
    model: nn.Module,
    plan: Mapping[str, Topology],
    pattern: str | Pattern = "v4",
    *,
    pairs: Iterable[tuple[str, str]] | None = None,
) -> dict[str, Alignment]:
    """Reorders hidden units of `model`, in place, so that rows that share a grain of `pattern` keep much the same columns.

    The rows of a layer, its bias and what stands between are permuted, and the columns of the next layer alike: the model
    computes what it did. Prune it at the grain afterwards.

    plan: what single weights would be kept, as of ``prune(model, "magnitude", 0.1)`` after training. pattern: `vN`.
    pairs: layers whose rows are the other's columns, with nothing but what takes each unit by itself between them, as
    ``[("fc1", "fc2")]``; by default those that follow each other in an `nn.Sequential`, elementwise modules, batch or layer norms
    over the units between. Layers that `plan` does not name, or whose rows the pattern does not divide, stay as they are.

    Rows are grouped greedily: the fullest that is left, then each time the one that adds the fewest columns.
    Returns the layers by name. Raises NothingMatched where there are no such pairs, InvalidInput for layers that are no pair, tied or
    parametrized, PatternError for a pattern of other grains than rows of one column.
    Source: Tan et al., Accelerating sparse convolution with column vector-wise sparsity, NeurIPS 2022 (there, clustered by a balanced k-means).

    >>> model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    >>> mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]) > 0
    >>> moved = align_(model, {"0": Topology.from_mask(mask)}, "v2")["0"]
    >>> moved.order.tolist(), moved.waste_before, moved.waste_after
    ([0, 2, 1, 3], 2.0, 1.0)
    """
    pattern = Pattern.parse(pattern)
    if pattern.columns > 1 or pattern.m:
        raise PatternError(
            f"pattern {pattern}", "unstructured or vN, whose grains are rows of one column", "Use v4 or v8."
        )
    chosen = [pair for pair in _pairs(model, pairs) if pair.first in plan and pattern.fits(plan[pair.first].shape)]
    if not chosen:
        raise NothingMatched(
            f"no pair of layers to align for a plan of {', '.join(plan) or 'nothing'}",
            "two layers of which one's rows are the other's columns, the first of them in the plan, with rows that the pattern divides",
            "Name them with pairs=[('fc1', 'fc2')].",
        )
    names = {name for pair in chosen for name in (pair.first, pair.second)}
    refuse_tied(model, names)
    refuse_unready(model, names)
    return {pair.first: _aligned(model, pair, plan[pair.first].mask(), pattern) for pair in chosen}


def grouped_rows(mask: Tensor, rows: int) -> Tensor:
    """An order of the rows of bool `mask` (out, in), in which each `rows` neighbours keep much the same columns.

    >>> grouped_rows(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1]]) > 0, 2).tolist()
    [2, 0, 1, 3]
    """
    numbers, fullness = mask.float(), mask.sum(1).float()
    left = torch.ones(len(mask), dtype=torch.bool, device="cpu")
    order: list[int] = []
    for place in range(len(mask)):
        if place % rows == 0:
            union = torch.zeros(mask.shape[1], dtype=torch.float32, device="cpu")
            gain = fullness  # the fullest row begins a group
        else:
            gain = numbers @ union - fullness  # of the others, minus what a row would add
        best = int(torch.where(left, gain, -torch.inf).argmax())
        order.append(best)
        left[best] = False
        union = torch.maximum(union, numbers[best])
    return torch.tensor(order, dtype=torch.int64, device="cpu")


@dataclass(frozen=True, slots=True)
class _Pair:
    first: str
    second: str
    between: tuple[str, ...] = ()


def _pairs(model: nn.Module, given: Iterable[tuple[str, str]] | None) -> list[_Pair]:
    linear = linear_layers(model)
    found = list(_in_sequence(model, linear)) if given is None else [_Pair(*pair) for pair in given]
    for pair in found:
        for name in (pair.first, pair.second):
            if name not in linear:
                raise unmatched(name, linear)
        rows, columns = linear[pair.first].out_features, linear[pair.second].in_features
        if rows != columns:
            raise InvalidInput(
                f"{rows} rows of layer {pair.first!r} for {columns} columns of layer {pair.second!r}",
                "as many",
                "Name a layer and the one that takes its outputs.",
            )
    return found


def _in_sequence(model: nn.Module, linear: Mapping[str, nn.Linear]) -> Iterator[_Pair]:
    uses = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    nested = {id(child) for each in model.modules() if isinstance(each, nn.Sequential) for child in each.children()}
    for path, sequence in model.named_modules():
        if not isinstance(sequence, nn.Sequential) or id(sequence) in nested:
            continue
        children = list(_one_by_one(path, sequence))
        places = [number for number, (name, _) in enumerate(children) if name in linear]
        for first, second in pairwise(places):
            between = children[first + 1 : second]
            once = all(uses.count(id(child)) == 1 for _, child in children[first : second + 1])
            units = linear[children[first][0]].out_features
            if once and all(_takes_each_unit(child, units) for _, child in between):
                yield _Pair(children[first][0], children[second][0], tuple(name for name, _ in between))


def _one_by_one(path: str, sequence: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a sequence in the order of their calls, those of sequences within among them."""
    for name, child in sequence.named_children():
        own = f"{path}.{name}".lstrip(".")
        if type(child) is nn.Sequential:
            yield from _one_by_one(own, child)
        else:
            yield own, child


def _takes_each_unit(module: nn.Module, units: int) -> bool:
    # Numbers of any other size are not one for each unit.
    fits = all(len(each) == units and each.dim() == 1 for each in _numbers_of([module]))
    return type(module) in _ELEMENTWISE or (type(module) in _WITH_NUMBERS and fits)


@torch.no_grad()
def _aligned(model: nn.Module, pair: _Pair, mask: Tensor, pattern: Pattern) -> Alignment:
    order = grouped_rows(mask, pattern.rows)
    first, second = (cast("nn.Linear", model.get_submodule(name)) for name in (pair.first, pair.second))
    between = [model.get_submodule(name) for name in pair.between]
    _permute(_numbers_of([first, *between]), order, 0)
    _permute([second.weight], order, 1)
    return Alignment(order, waste_factor(mask, pattern), waste_factor(mask[order], pattern))


def _numbers_of(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [
        each for module in modules for each in (*module.parameters(), *module.buffers()) if each.dim() and len(each) > 1
    ]


def _permute(tensors: Iterable[Tensor], order: Tensor, axis: int) -> None:
    for tensor in tensors:
        tensor.copy_(tensor.index_select(axis, order.to(tensor.device)))


__all__ = ["Alignment", "align_", "grouped_rows"]
