"""A training run at one moment, as safetensors and JSON: all that going on bit for bit takes, and no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pollard.errors import StoreError
from pollard.formats.store import load_tensors, save_tensors
from pollard.reading import fits
from pollard.training.sparsifier import Sparsifier

FORMAT = "pollard checkpoint 1"

# A tree as torch's state_dict() gives it: dicts, lists and tuples of tensors and scalars.
Tree = Any


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A run after `step` steps.

    identity: names what is trained and how; a run with another identity refuses to go on from it.
    model, optimizer, sparsifier: their state_dict(); the last is empty where no topology moves. noise: torch's random state. seconds: float32, of every step so far.
    loss_sum: over the examples of the epoch that is under way. metrics_bytes: size of the metrics file.
    record: the metrics of the last finished epoch.
    """

    identity: str
    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tree]
    noise: Tensor
    seconds: Tensor
    loss_sum: float
    metrics_bytes: int
    record: Mapping[str, int | float]
    sparsifier: Mapping[str, Tree] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to `path`, atomically: a kill at any moment leaves the old checkpoint or the new one."""
        tensors: dict[str, Tensor] = {}
        state = {
            "model": flatten(dict(self.model), tensors, "model"),
            "optimizer": flatten(dict(self.optimizer), tensors, "optimizer"),
            "sparsifier": flatten(dict(self.sparsifier), tensors, "sparsifier"),
        }
        tensors["noise"], tensors["seconds"] = self.noise, self.seconds
        scalars = {name: getattr(self, name) for name in SCALARS}
        save_tensors(path, tensors, {"format": FORMAT, "state": state, **scalars, "record": dict(self.record)})

    @classmethod
    def load(cls, path: Path, identity: str) -> Checkpoint:
        """The checkpoint at `path`; raises StoreError when it is truncated, foreign, or of another `identity`."""
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != FORMAT:
            raise StoreError(
                f"{path}, a {metadata.get('format', 'file without a format')}", f"a {FORMAT}", _START_AGAIN
            )
        if metadata.get("identity") != identity:
            raise StoreError(
                f"{path} of run {metadata.get('identity')}",
                f"run {identity}",
                "Its recipe was another one: use that recipe, or another output folder.",
            )
        try:
            _check(tensors, metadata)
            return cls(
                model=unflatten(metadata["state"]["model"], tensors),
                optimizer=unflatten(metadata["state"]["optimizer"], tensors),
                # Checkpoints from before topologies could move do not have it.
                sparsifier=unflatten(metadata["state"].get("sparsifier", {"dict": []}), tensors),
                noise=tensors["noise"],
                seconds=tensors["seconds"],
                record=metadata["record"],
                **{name: metadata[name] for name in SCALARS},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{path} with a gap: {error!r}", "a complete checkpoint", _START_AGAIN) from error

    def restore(self, model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier | None = None) -> None:
        """Put the stored state into `model`, `optimizer` and `sparsifier`; raises StoreError when it does not fit them."""
        try:
            model.load_state_dict(self.model)
            optimizer.load_state_dict(dict(self.optimizer))
            if sparsifier is not None:
                sparsifier.load_state_dict(self.sparsifier)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise StoreError(
                f"a checkpoint that does not fit: {error}", "the checkpoint of this model and optimizer", _START_AGAIN
            ) from error


SCALARS = {"identity": str, "step": int, "loss_sum": float, "metrics_bytes": int}
_START_AGAIN = "Remove the run folder to start again."


def _check(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Raises StoreError, or KeyError, unless everything is there that a run takes as it comes."""
    odd = [name for name, kind in SCALARS.items() if not fits(metadata[name], kind)]
    odd += [name for name in ("step", "metrics_bytes") if name not in odd and metadata[name] < 0]
    if not fits(metadata["record"], dict[str, int | float]):
        odd.append("record")
    noise, seconds = tensors["noise"], tensors["seconds"]
    if noise.dtype != torch.uint8 or noise.shape != torch.get_rng_state().shape:
        odd.append("noise")
    if seconds.dtype != torch.float32 or seconds.dim() != 1:
        odd.append("seconds")
    if odd:
        raise StoreError(f"a checkpoint whose {odd[0]} is of another kind", "a complete checkpoint", _START_AGAIN)


def flatten(tree: Tree, tensors: dict[str, Tensor], name: str) -> Tree:
    """`tree` as JSON, its tensors moved into `tensors` under names that start with `name`.

    >>> found: dict[str, Tensor] = {}
    >>> flatten({0: (Tensor([1, 1]), 0.5)}, found, "state")
    {'dict': [[0, {'tuple': [{'tensor': 'state.0.0'}, 0.5]}]]}
    >>> found
    {'state.0.0': tensor([1., 1.])}
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, flatten(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [flatten(value, tensors, f"{name}.{index}") for index, value in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise StoreError(
        f"{name}, a {type(tree).__name__}",
        "tensors, numbers, text, lists and dicts",
        "Keep this state out of state_dict().",
    )


def unflatten(flat: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    """The tree that `flatten` took apart.

    >>> unflatten({"tuple": [{"tensor": "a"}, 0.5]}, {"a": Tensor([1])})
    (tensor([1.]), 0.5)
    """
    if not isinstance(flat, dict):
        return flat
    [(kind, content)] = flat.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    parts = [unflatten(value, tensors) for value in content]
    return tuple(parts) if kind == "tuple" else parts
