"""A model made of nothing but the names and shapes in a checkpoint: enough to decide what to keep by the weights alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pollard.errors import StoreError
from pollard.formats.entries import Entry
from pollard.selection import LayerFilter
from pollard.streamed.stored import Stored, Turned
from pollard.streamed.tensor import StreamedTensor

# What embeddings are called: their rows are looked up, and no product is taken with them.
EMBEDDINGS = (
    "*embed",
    "*embedding",
    "*embeddings",
    "embed_*",
    "emb",
    "*_emb",
    "wte",
    "wpe",
    "shared",
    "relative_attention_bias",
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Other(nn.Module):
    """A module of which nothing is known but its tensors."""


def skeleton(held: Mapping[str, Entry], layers: LayerFilter, saw: Callable[[int], None]) -> nn.Module | None:
    """Linear layers and convolutions with the matrices of `held`, which stay in their files, among modules that compute nothing; None
    where there is no matrix.

    layers: what is to be pruned: an embedding that is named in full is taken for a linear layer. saw: told of bytes that are read.
    """
    named = {layers} if isinstance(layers, str) else set() if layers is None or callable(layers) else set(layers)
    matrices = _matrices(held)
    turned = _turned(matrices, held)
    made = {
        path: _transposed(each, saw) if path in turned else _layer(path, each, named, saw)
        for path, each in matrices.items()
    }
    if all(isinstance(each, nn.Embedding) for each in made.values()):
        return None
    root = nn.Module()
    try:
        for path in sorted({path for name in held for path in _above(name)}, key=_counting):
            parent, _, own = path.rpartition(".")
            root.get_submodule(parent).add_module(own, made.get(path) or Other())
        for name, each in held.items():
            path, _, own = name.rpartition(".")
            if each.dtype in FLOATS and not (own == "weight" and path in made):
                bare = torch.empty(each.shape, dtype=each.dtype, device="meta")
                root.get_submodule(path).register_parameter(own, nn.Parameter(bare, requires_grad=False))
    except (AttributeError, KeyError) as error:
        raise StoreError(
            f"tensors that no model of torch holds: {error}", "the state of a model", "Save model.state_dict()."
        ) from error
    return root


def _matrices(held: Mapping[str, Entry]) -> dict[str, Entry]:
    """What linear layers and convolutions could hold, by the path of the layer."""
    return {
        path: each
        for name, each in held.items()
        for path, _, own in [name.rpartition(".")]
        if path and own == "weight" and each.dtype in FLOATS and 2 <= len(each.shape) <= 5 and min(each.shape) > 0
    }


def _turned(matrices: Mapping[str, Entry], held: Mapping[str, Entry]) -> set[str]:
    """The paths of matrices that are stored `(in, out)`, as those of GPT-2 are, told by biases: one number for each column.

    What is square and has a bias goes with the others of its own name.
    """
    biased = {
        path: each.shape
        for path, each in matrices.items()
        if len(each.shape) == 2 and f"{path}.bias" in held and held[f"{path}.bias"].shape == each.shape[1:]
    }
    sure = {path.rpartition(".")[2] for path, (rows, columns) in biased.items() if rows != columns}
    return {path for path in biased if path.rpartition(".")[2] in sure}


def _transposed(entry: Entry, saw: Callable[[int], None]) -> nn.Module:
    """A module with a linear layer of the transpose, which is what such a module is composed of."""
    inner, out = entry.shape
    module, layer = Other(), nn.Linear(inner, out, bias=False, device="meta")
    layer.weight = nn.Parameter(StreamedTensor(Turned(entry, entry.dtype, saw)), requires_grad=False)
    module.add_module("linear", layer)
    return module


def _layer(path: str, entry: Entry, named: set[str], saw: Callable[[int], None]) -> nn.Module:
    out, inner, *kernel = entry.shape
    called = path.rpartition(".")[2]
    layer: nn.Module
    if kernel:
        layer = _CONVOLUTIONS[len(entry.shape)](inner, out, tuple(kernel), bias=False, device="meta")
    elif path not in named and any(fnmatchcase(called, each) for each in EMBEDDINGS):
        return nn.Embedding(out, inner, device="meta")
    else:
        layer = nn.Linear(inner, out, bias=False, device="meta")
    layer.weight = nn.Parameter(StreamedTensor(Stored(entry, entry.dtype, saw), entry.shape), requires_grad=False)
    return layer


def _counting(path: str) -> list[tuple[bool, int, str]]:
    """A key by which 2 comes before 10: files do not tell the order of a model's layers."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.split(".")]


def _above(name: str) -> list[str]:
    """The paths of the modules that a tensor is within."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


__all__ = ["skeleton"]
