"""The state of a dense checkpoint for a model whose weights have no memory: they stay in the file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TypeVar

from torch import Tensor, nn

from pollard.errors import InvalidInput
from pollard.formats.entries import Entry, entries
from pollard.selection import is_sparse, listed
from pollard.streamed.stored import Stored
from pollard.streamed.tensor import StreamedTensor

Model = TypeVar("Model", bound=nn.Module)
_FIT = "Load it into the model that it came from, or say with prefix= what its names begin with."
_COUNTER = ".num_batches_tracked"  # torch's norms do without: earlier versions had none


def load_streamed_(model: Model, path: str | PathLike[str], *, prefix: str = "") -> Model:
    """Gives `model`, made within `pollard.never_dense`, the state of a dense checkpoint, strictly; returns `model`.

    ::

        with pollard.never_dense():
            model = MyModel()
        pollard.load_streamed_(model, "checkpoint")
        plan = pollard.prune(model, "magnitude", density=0.05)
        pollard.sparsify_(model, plan)

    Weights without memory point into the file from now on, and stay without: rows of them are read when they are needed, so the file
    has to stay as it is until `sparsify_` is done. All other parameters and buffers are read, one module after the other. Numbers in
    another dtype than the model's become the model's.

    path: of a ``.safetensors`` file, or of a folder that `save_pretrained` wrote, in one file or in shards.
    prefix: what the names in the file begin with and those of the model do not; what has other names is left out.
    Raises StoreError for a file that is damaged, or that no part can be read of, InvalidInput for names that are missing, not expected
    or of another shape, and for a model that has memory: all before anything is changed.

    >>> from pollard.formats.store import save_tensors
    >>> from pollard.streamed.birth import never_dense
    >>> save_tensors("dense.safetensors", nn.Linear(3, 2).state_dict(), {})
    >>> with never_dense(seed=0):
    ...     model = nn.Linear(3, 2)
    >>> load_streamed_(model, "dense.safetensors").weight.source
    'weight' of dense.safetensors
    """
    held = {name.removeprefix(prefix): each for name, each in entries(path).items() if name.startswith(prefix)}
    streamed = {name: each for name, each in _named(model).items() if isinstance(each, StreamedTensor)}
    if not streamed:
        raise InvalidInput(
            "a model that has memory for all its weights",
            "one made within pollard.never_dense()",
            "Make it there, or load the file with model.load_state_dict(safetensors.torch.load_file(path)).",
        )
    _refuse_misfits(model, held, streamed)
    _read(model, {name: each for name, each in held.items() if name not in streamed})
    for name, weight in streamed.items():
        if name in held:  # the other names of a weight are of the same object
            weight.source = Stored(held[name], weight.dtype)
    return model


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _refuse_misfits(model: nn.Module, held: Mapping[str, Entry], streamed: Mapping[str, StreamedTensor]) -> None:
    own: dict[str, Tensor] = {name: each for name, each in model.state_dict().items() if isinstance(each, Tensor)}
    named = _named(model)
    # A parameter of several names needs one of them.
    told = {id(named[name]) for name in held if name in named}
    absent = [
        name for name in own if name not in held and not name.endswith(_COUNTER) and id(named.get(name)) not in told
    ]
    strange = [name for name in held if name not in own]
    # What sparse layers hold says its own sizes.
    sparse = {name for name, module in model.named_modules(remove_duplicate=False) if is_sparse(module)}
    others = [
        f"{name} {each.shape} for {tuple(own[name].shape)}"
        for name, each in held.items()
        if name in own and tuple(own[name].shape) != each.shape and name.rpartition(".")[0] not in sparse
    ]
    whole = [name for name in streamed if name in held and not held[name].dtype.is_floating_point]
    for what, names in {
        "without": absent,
        "with names that the model has not:": strange,
        "of other shapes:": others,
        "with whole numbers for": whole,
    }.items():
        if names:
            raise InvalidInput(
                f"a checkpoint {what} {listed(names)}", f"one entry for each of the model's {len(own)}", _FIT
            )


def _read(model: nn.Module, held: Mapping[str, Entry]) -> None:
    """Loads these entries as `load_state_dict` does, a module at a time, so that no more than that is there twice."""
    by_module: dict[str, dict[str, Entry]] = {}
    for name, each in held.items():
        path, _, own = name.rpartition(".")
        by_module.setdefault(path, {})[own] = each
    for path, found in by_module.items():
        module = model.get_submodule(path)
        assign = any(each.is_meta for each in module.parameters(recurse=False))
        try:
            module.load_state_dict({name: each.whole() for name, each in found.items()}, strict=False, assign=assign)
        except RuntimeError as error:  # of sparse layers, and of modules that load in their own way
            raise InvalidInput(f"a checkpoint that does not fit {path!r}: {error}", "its state", _FIT) from error


__all__ = ["load_streamed_"]
