"""Dense checkpoints that need not fit in memory: pruned without their model, from one file into another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from pollard.composites import matrices
from pollard.errors import InvalidInput, NothingMatched, StoreError
from pollard.formats.entries import Entry, entries
from pollard.formats.pattern import PatternChoice
from pollard.formats.store import Pieces, save_pieces
from pollard.formats.topology import Topology
from pollard.pruning.allocation import Allocation
from pollard.pruning.criteria import CRITERIA, Criterion
from pollard.pruning.decision import Bound, prune
from pollard.pruning.plan import Plan
from pollard.pruning.skeleton import skeleton
from pollard.selection import LayerFilter, listed
from pollard.streamed.stored import Stored
from pollard.streamed.tensor import StreamedTensor, kept_values

# Told of the work: its name, the bytes that are done, and how many there are.
Watch = Callable[[str, int, int], None]


def prune_checkpoint(
    path: str | PathLike[str],
    out: str | PathLike[str],
    criterion: str | Criterion = "magnitude",
    density: float | None = None,
    *,
    allocation: str | Allocation | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    min_density: Bound = None,
    max_density: Bound = None,
    generator: torch.Generator | None = None,
    invert: bool = False,
    watch: Watch | None = None,
) -> Plan:
    """Prunes the dense checkpoint at `path` and writes what is kept to `out`, for `pollard.load_sparse`; returns the plan.

    Memory is proportional to what is kept, and a block of rows: the checkpoint is read some rows at a time, once for the scores and
    once for the values. No model is needed: a float tensor `NAME.weight` of two axes is taken for the matrix `(out, in)` of a linear
    layer, or ``(in, out)``, as GPT-2 has it, where a bias fits its columns; one of three to five for a convolution without groups. The
    plan calls the latter two ``NAME.linear``. The decision is that of `prune`
    for the model, weight for weight, with the layers in the order of their names: a file knows no other. All other tensors are copied.

    path: a ``.safetensors`` file, or a folder that `save_pretrained` wrote, in one file or in shards.
    out: one safetensors file, written under another name and renamed when it is whole.
    criterion: one that looks at nothing but the weights: magnitude, random, or your own with ``needs=("weight",)`` and by_row=True.
    layers: which matrices, as name patterns or a callable `(name, module) -> bool`; None is all but those whose name is that of an
        embedding, as `wte` and `word_embeddings`, which only a name in full takes. Leave out with it what the model multiplies in another way: tied or grouped weights.
    watch: is told of the work: `(what, bytes done, bytes in all)`.
    The other arguments are those of `prune`. Raises StoreError for files that cannot be read or written, or that change
    meanwhile, NothingMatched where there is nothing to prune, else as `prune`.

    >>> from pollard.formats.store import load_tensors, save_tensors
    >>> save_tensors("dense.safetensors", {"fc.weight": torch.arange(8.0).view(2, 4), "fc.bias": torch.ones(2)}, {})
    >>> prune_checkpoint("dense.safetensors", "sparse.safetensors", density=0.25)
    Plan(1 layer, 2 of 8 weights kept, density 0.25)
    >>> load_tensors("sparse.safetensors")[0]["fc.values"]
    tensor([6., 7.])
    """
    rule, out = _looks_at_weights(criterion), Path(out)
    held = entries(path)
    _refuse_place(out, held)
    work = _Work(watch)
    model = skeleton(held, layers, work)
    if model is None:
        raise NothingMatched(
            f"{path} without a matrix: {listed(held)}",
            "float tensors NAME.weight of two axes or more, that are no embeddings",
            "Name embeddings in full with layers= to have them pruned.",
        )
    total = sum(map(_bytes, _read(model)))
    plan = prune(
        model, rule, density, allocation=allocation, pattern=pattern, layers=layers, min_density=min_density,
        max_density=max_density, generator=generator, invert=invert, forecast=lambda _: work.begin("scoring", total),
    )  # fmt: skip
    _write(held, model, plan, out, work)
    return plan


class _Work:
    """Tells somebody how many bytes of some work are done."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch, self.what, self.done, self.total = watch, "", 0, 0

    def begin(self, what: str, total: int) -> None:
        """From now on it is that, of so many bytes."""
        self.what, self.done, self.total = what, 0, total

    def __call__(self, more: int) -> None:
        """So many more; rows that ties or grains make it read again count once, and what a rehearsal reads does not."""
        self.done = min(self.total, self.done + more)
        if self.watch is not None and self.total:
            self.watch(self.what, self.done, self.total)


def _looks_at_weights(criterion: str | Criterion) -> Criterion:
    rule = CRITERIA.get(criterion) if isinstance(criterion, str) else criterion
    if rule is not None and _needs_no_model(rule):
        return rule
    able = [name for name, each in CRITERIA.items() if _needs_no_model(each)]
    raise InvalidInput(
        f"criterion {criterion!r} for a checkpoint without a model",
        "one that looks at weights alone, by_row=True: " + ", ".join(able),
        "To score with data, make the model within pollard.never_dense(), then pollard.load_streamed_(model, path) and pollard.prune.",
    )


def _needs_no_model(rule: Criterion) -> bool:
    needs = getattr(rule, "needs", ("everything",))
    return rule.by_row and rule.solve is None and {"weight", "generator"} >= set(needs)


def _refuse_place(out: Path, held: Mapping[str, Entry]) -> None:
    """Before hours of work, that their result has a place."""
    if not out.parent.is_dir() or out.is_dir():
        raise StoreError(f"{out}", "the path of a file in a folder that is there", "Create the folder first.")
    if out.resolve() in {each.path for each in held.values()}:
        raise InvalidInput(
            f"out={str(out)!r}, which is read", "another file", "Write to a new name, and delete the old."
        )


def _read(model: nn.Module) -> list[Entry]:
    """What the matrices of a skeleton are read from."""
    sources = (each.source for each in model.parameters() if isinstance(each, StreamedTensor))
    return [each.entry for each in sources if isinstance(each, Stored)]


def _write(held: Mapping[str, Entry], model: nn.Module, plan: Plan, out: Path, work: _Work) -> None:
    layers, pruned, made = matrices(model), dict[str, str](), dict[str, Pieces]()
    for name, topology in plan.items():
        weight = layers[name].weight.detach()
        assert isinstance(weight, StreamedTensor)
        assert isinstance(weight.source, Stored)
        pruned[weight.source.entry.place.name] = name
        made |= {f"{name}.{part}": each for part, each in _parts(weight, topology).items()}
    copied = {name: each for name, each in held.items() if name not in pruned}
    for name, each in copied.items():
        made[name] = Pieces(each.dtype, each.shape, partial(_copied, each, work))
    work.begin("writing", sum(map(_bytes, held.values())))
    save_pieces(out, made, {"criterion": plan.criterion, "allocation": plan.allocation, "asked": plan.asked})


def _parts(weight: StreamedTensor, topology: Topology) -> dict[str, Pieces]:
    """What a sparse layer has in a state."""
    pattern = torch.tensor(list(str(topology.pattern).encode()), dtype=torch.uint8, device="cpu")
    return {
        "values": Pieces(weight.dtype, (topology.nnz,), lambda: [kept_values(weight, topology)]),
        "row_pointers": Pieces(torch.int32, (topology.groups + 1,), lambda: [topology.row_pointers]),
        "columns": Pieces(torch.int32, (topology.grains,), lambda: [topology.columns]),
        "pattern": Pieces(torch.uint8, (len(pattern),), lambda: [pattern]),
    }


def _copied(entry: Entry, work: _Work) -> Iterator[Tensor]:
    for piece in entry.pieces():
        yield piece
        work(piece.nbytes)


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


__all__ = ["prune_checkpoint"]
