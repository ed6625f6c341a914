"""Sparse layers made by a state: their number of kept weights is the file's, and no dense weight needs to exist."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pollard.composites import matrices
from pollard.errors import InvalidInput, NothingMatched, StoreError
from pollard.formats.entries import files_of
from pollard.formats.store import load_any
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.states import ARRAYS, topology_of
from pollard.nn.surgery import composing, replaceable, swap
from pollard.references import references
from pollard.selection import is_linear, listed, refuse_tied, unmatched

Model = TypeVar("Model", bound=nn.Module)
State = Mapping[str, Any] | str | PathLike[str]
PARTS = ("values", *ARRAYS)


def load_sparse(model: Model, state: State, *, prefix: str | None = None) -> Model:
    """Makes each layer of `model` sparse whose entries in `state` are, then loads all of `state`, strictly; returns `model`.

    state: a state_dict; a dict that holds one under "state_dict", as Lightning's checkpoints do; or the path of a
    ``.safetensors`` file, of what `torch.save` wrote (read with `weights_only`), of a folder that `save_pretrained` wrote,
    or of a distributed checkpoint, whose own index torch reads with pickle: only from a source that you trust.
    prefix: what the names of the state begin with and those of the model do not; entries without it are left out. By
    default what all names share. Parameters on the meta device take the tensors of the state, dtype included, so that a
    model built under ``torch.device("meta")`` never holds a dense weight.
    Raises InvalidInput where state and model do not fit, before a layer is replaced or with the layers put back; StoreError
    for a file that cannot be read. Make the optimizer afterwards.

    >>> kept = {"0.values": torch.ones(2), "0.row_pointers": torch.tensor([0, 1, 2]), "0.columns": torch.tensor([0, 2])}
    >>> load_sparse(nn.Sequential(nn.Linear(3, 2, bias=False)), kept)
    Sequential(
      (0): SparseLinear(in_features=3, out_features=2, density=0.3333, pattern=unstructured, bias=False)
    )
    """
    held = _stripped(model, _tensors(state, prefix or ""), prefix)
    names = _sparse_names(held)
    if not names:
        inner = next((key for key, each in held.items() if isinstance(each, Mapping) and _sparse_names(each)), None)
        fix = "Use load_state_dict()." if inner is None else f"Pass what it holds under {inner!r}, which has some."
        raise InvalidInput("a state without a sparse layer", "values, row_pointers and columns", fix)
    with composing(model, names):
        _load(model, names, held)
    return model


def _load(model: nn.Module, names: list[str], held: dict[str, Any]) -> None:
    made = {name: _layer(model, name, held) for name in names if not isinstance(_module(model, name), SparseLinear)}
    refuse_tied(model, made)
    found = replaceable(model, made)
    ties = _ties(model, held)
    held |= {name: held[first] for first, others in ties.items() for name in others}
    _refuse_left_on_meta(model, made, held)
    assign = any(parameter.is_meta for parameter in model.parameters())
    before = {name: model.get_submodule(name) for name in made}
    for name, layer in made.items():
        swap(model, before[name], layer, found)
    try:
        model.load_state_dict(held, assign=assign)
    except RuntimeError as error:
        found = references(model, made.values())
        for name, layer in made.items():
            swap(model, layer, before[name], found)
        raise InvalidInput(f"a state that does not fit: {error}", "one entry for each of the model's", _FIT) from error
    for first, others in ties.items() if assign else ():
        _tie(model, first, others)


_FIT = "Load it into the model it came from, or say with prefix= what its names begin with."


def _sparse_names(held: Mapping[str, Any], prefix: str = "") -> list[str]:
    heads = [key.removesuffix(PARTS[1]) for key in held if key.startswith(prefix) and key.endswith(PARTS[1])]
    whole = [head for head in heads if all(head + part in held for part in PARTS) and head[-1:] in ("", ".")]
    return [head.removeprefix(prefix).removesuffix(".") for head in whole]


def _stripped(model: nn.Module, held: Mapping[str, Any], prefix: str | None) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, or with what all share where that makes them the model's, without it."""
    if prefix is None:
        prefix, own = "", {*dict(model.named_modules()), *matrices(model)}
        while not all(name in own for name in _sparse_names(held, prefix)):
            heads = {key.removeprefix(prefix).partition(".")[:2] for key in held}
            if len(heads) != 1 or "" in heads.copy().pop():
                prefix = ""
                break
            prefix += "".join(heads.pop())
    return {key.removeprefix(prefix): tensor for key, tensor in held.items() if key.startswith(prefix)}


def _module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        plain = unmatched(name, matrices(model))
        raise NothingMatched(
            plain.got,
            plain.expected,
            f"{plain.fix} Where a library renames tensors while it loads a file, as transformers does for ViT, give load_sparse the "
            "tensors of the file under the model's names, {renamed(name): tensor, ...}.",
        )
    found: nn.Module = modules[name]
    return found


def _layer(model: nn.Module, name: str, held: Mapping[str, Any]) -> SparseLinear:
    """A layer for the entries `name`, with room for their values."""
    dense = _module(model, name)
    if not name or not (is_linear(dense) or isinstance(dense, MaskedLinear)):
        raise InvalidInput(
            f"sparse entries for {name or 'the model itself'!r}, a {type(dense).__name__}",
            "a linear layer within a model",
            "Build the model that was saved; wrap a single layer, as in nn.Sequential(layer).",
        )
    out_features, in_features = dense.weight.shape
    values, row_pointers, columns = (held[f"{name}.{part}"] for part in PARTS)
    topology = topology_of((out_features, in_features), row_pointers, columns, held.get(f"{name}.pattern"))
    dtype = values.dtype if dense.weight.is_meta else dense.weight.dtype
    return SparseLinear(
        in_features,
        out_features,
        topology,
        dense.bias is not None,
        initialiser=lambda kept, _: torch.zeros(kept.nnz, dtype=dtype, device="cpu"),
        device="cpu" if dense.weight.is_meta else dense.weight.device,
        dtype=dtype,
    )


def _ties(model: nn.Module, held: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names in `held` of parameters that have other names too, to those names that `held` does not have."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    groups = [group for group in names.values() if len(group) > 1 and any(name in held for name in group)]
    firsts = [next(name for name in group if name in held) for group in groups]
    return {first: [n for n in group if n != first] for first, group in zip(firsts, groups, strict=True)}


def _tie(model: nn.Module, first: str, others: list[str]) -> None:
    parameter = model.get_parameter(first)
    for name in others:
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, parameter)


def _refuse_left_on_meta(model: nn.Module, made: Mapping[str, nn.Module], held: Mapping[str, Any]) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    left = [
        name
        for name, tensor in tensors.items()
        if tensor.is_meta and name not in held and name.rpartition(".")[0] not in made
    ]
    if left:
        raise InvalidInput(
            f"{listed(left)} on the meta device, and not in the state",
            "a state with all that has no memory yet",
            "Make buffers that are not saved on the CPU, as accelerate's init_empty_weights does.",
        )


def _tensors(state: State, prefix: str) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        path = Path(state)
        state = _folder(path, prefix) if path.is_dir() else _file(path)
    held = state.get("state_dict", state)
    if not isinstance(held, Mapping) or not all(isinstance(key, str) for key in held):
        raise InvalidInput(f"a state of {type(held).__name__}", "names and tensors", "Pass a state_dict, or its path.")
    return {key: tensor for key, tensor in held.items() if key != "_metadata"}


def _file(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return load_any(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: No such file", "a file that can be read", "Check the path.") from error
    except Exception as error:  # torch and pickle do not say what they raise on damage
        # What torch says of objects is how to have them run.
        objects = isinstance(error, UnpicklingError)
        reason = "it holds other things than tensors" if objects else str(error).partition("\n")[0]
        fix = "Save model.state_dict(), not the model: nothing else is read, since it could run code."
        raise StoreError(f"{path}: {reason}", "a state, by torch.save or safetensors", fix) from error
    if not isinstance(held, Mapping):
        raise StoreError(f"{path} of a {type(held).__name__}", "a state_dict", "Save model.state_dict().")
    return held


def _folder(path: Path, prefix: str) -> dict[str, Any]:
    if (path / ".metadata").exists():
        return _distributed(path, prefix)
    held: dict[str, Any] = {}
    for each in files_of(path):
        held |= _file(each)
    return held


def _distributed(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a distributed checkpoint whose names begin with `prefix`, as large as they were saved."""
    import torch.distributed.checkpoint as dcp  # loads slowly
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # with it

    reader = dcp.FileSystemReader(path)
    try:
        entries = reader.read_metadata().state_dict_metadata.items()
        held = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
            for name, entry in entries
            if isinstance(entry, TensorStorageMetadata) and name.startswith(prefix)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is ")  # one process reads, as it is meant to
            dcp.load(held, storage_reader=reader, no_dist=True)
    except Exception as error:  # torch and pickle do not say what they raise on damage
        raise StoreError(f"{path}: {error}", "a distributed checkpoint", "Save it again.") from error
    return held


__all__ = ["load_sparse"]
