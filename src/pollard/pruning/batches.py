"""Scoring batches of any structure: tensors, tuples, lists and dicts of them, as models take them and give them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pollard.errors import InvalidInput
from pollard.pruning.scoring import Pair


def is_pair(value: object) -> TypeGuard[Pair]:
    """Whether `value` is one pair (inputs, targets), and no series of batches: two sequences, or two mappings with the same
    keys, are taken for a series of two.

    >>> x, y = torch.ones(3, 2), torch.ones(3)
    >>> is_pair((x, y)), is_pair(((x, x), y)), is_pair(({"x": x}, {"y": y})), is_pair(((x, y), (x, y))), is_pair([x])
    (True, True, True, False, False)
    >>> is_pair([{"x": x, "labels": y}, {"x": x, "labels": y}])
    False
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    if all(isinstance(part, Mapping) for part in value) and set(value[0]) == set(value[1]):
        return False
    return not all(isinstance(part, tuple | list) for part in value) and all(_is_data(part) for part in value)


def tensors(value: Any) -> list[Tensor]:
    """The tensors within `value`, in order.

    >>> [len(part) for part in tensors({"x": torch.ones(3), "mask": (torch.ones(2), None)})]
    [3, 2]
    """
    return [part for part in pytree.tree_leaves(value) if isinstance(part, Tensor)]


def signals(value: Any) -> list[Tensor]:
    """The tensors of floating-point numbers within `value`."""
    return [part for part in tensors(value) if part.is_floating_point()]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with each of its tensors changed."""
    return pytree.tree_map(lambda part: change(part) if isinstance(part, Tensor) else part, value)


def count(value: Any) -> int:
    """How many samples there are."""
    return len(tensors(value)[0])


def between(value: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop`."""
    return mapped(value, lambda part: part[start:stop])


def pieces(pair: Pair, size: int) -> list[Pair]:
    """`pair` in pieces of `size` samples; the last may be smaller.

    >>> [tuple(map(count, piece)) for piece in pieces((torch.ones(5, 2), {"y": torch.ones(5)}), 2)]
    [(2, 2), (2, 2), (1, 1)]
    """
    inputs, targets = pair
    ends = range(0, count(inputs), size)
    return [(between(inputs, start, start + size), between(targets, start, start + size)) for start in ends]


def joined(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Outputs for pieces of so many samples as outputs for all; None where they are not one thing a sample.

    >>> joined([(torch.ones(2, 3), None), (torch.ones(1, 3), None)], [2, 1])[0].shape
    torch.Size([3, 3])
    """
    flat, shapes = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    if any(shape != shapes[0] for shape in shapes[1:]):
        return None
    whole = []
    for leaves in zip(*flat, strict=True):
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            if not all(_same(leaf, leaves[0]) for leaf in leaves):
                return None
            whole.append(leaves[0])
        elif all(leaf.dim() and len(leaf) == size for leaf, size in zip(leaves, sizes, strict=True)):
            whole.append(torch.cat(leaves))
        else:
            return None
    return pytree.tree_unflatten(whole, shapes[0])


def spliced(whole: Any, piece: Any, start: int) -> Any:
    """`whole`, with `piece` in the place of its samples from `start` on."""
    flat, shape = pytree.tree_flatten(whole)
    own = pytree.tree_leaves(piece)
    put = [
        torch.cat((old[:start], new, old[start + len(new) :])) if isinstance(old, Tensor) else old
        for old, new in zip(flat, own, strict=True)
    ]
    return pytree.tree_unflatten(put, shape)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with `inputs`: a tensor alone, a tuple or list one by one, a mapping by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def checked(pair: object, device: torch.device) -> Pair:
    """`pair`, once it is sure that it is one, of matching samples on `device`; a mapping alone is inputs and targets both."""
    if isinstance(pair, Mapping):
        pair = pair, pair
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(_is_data(part) for part in pair):
        raise InvalidInput(
            f"a scoring batch of type {type(pair).__name__}",
            "a pair (inputs, targets) of tensors, or of tuples or dicts of them, a dict that holds both by the model's own names, "
            "or an iterable of such",
            "Pass batch=(inputs, targets).",
        )
    # A mapping of another class, as tokenizers give, is a dict here.
    inputs, targets = (dict(part) if isinstance(part, Mapping) else part for part in pair)
    parts = tensors((inputs, targets))
    sizes = {len(part) if part.dim() else 0 for part in parts}
    if len(sizes) != 1 or 0 in sizes:
        raise InvalidInput(
            f"inputs of shape {_shapes(inputs)} with targets of shape {_shapes(targets)}",
            "as many inputs as targets along the first axis, at least one",
            "Pass matching samples; a data set goes into a DataLoader, which makes batches of it.",
        )
    if any(part.device != device for part in parts):
        places = " and ".join(str(tensors(part)[0].device) for part in (inputs, targets))
        raise InvalidInput(
            f"a scoring batch on {places}", f"tensors on {device}, as the model", "Move them with .to(device)."
        )
    return inputs, targets


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, bool | int | float | str) and one == other)


def _is_data(part: object) -> bool:
    if isinstance(part, Mapping):
        part = dict(part)
    return bool(tensors(part)) and all(
        isinstance(leaf, Tensor | bool | int | float | None) for leaf in pytree.tree_leaves(part)
    )


def _shapes(value: Any) -> str:
    return ", ".join(str(tuple(part.shape)) for part in tensors(value))


__all__ = [
    "arguments",
    "between",
    "checked",
    "count",
    "is_pair",
    "joined",
    "mapped",
    "pieces",
    "signals",
    "spliced",
    "tensors",
]
