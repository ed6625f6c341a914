"""Sparse training in any loop: one call makes the layers sparse and gives the object whose `step()` does the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pollard.arguments import require_density, require_one_of
from pollard.composites import matrices
from pollard.errors import InvalidInput, LeftDense, OtherDensity
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import PatternChoice, density_of, patterns_of
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.surgery import Storage, composing, sparse_layers, sparsify_
from pollard.pruning.decision import prune
from pollard.pruning.plan import Plan
from pollard.selection import LayerFilter, linear_layers, listed, require_module, select
from pollard.training import processes
from pollard.training.methods import METHODS
from pollard.training.methods.method import Method, options_of, require_options
from pollard.training.optimizers import rebind, require_stepped
from pollard.training.randomness import agreed
from pollard.training.sparsifier import Sparsifier


def sparse_training(
    model: nn.Module,
    optimizer: Optimizer,
    method: str | Method = "rigl",
    *,
    density: float | None = None,
    steps: int = 0,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
    **options: Any,
) -> Sparsifier:
    """Makes the linear layers of `model` sparse and moves their topology by `method`: then call `step()` of what is returned.

    `optimizer` keeps its settings and whatever state it has: it steps the kept values from now on. Layers that are sparse
    already stay as they are, and `density` may be left out, as it may where an N:M pattern says it; one that they do not keep
    warns OtherDensity where the method holds what there is.

    method: a member of `METHODS` with its `options`, or a Method. density: the fraction of weights to keep, in (0, 1].
    steps: how many there will be; schedules are laid out over them. criterion: of the first topology, any member of
    `CRITERIA`, which may need a `batch`; by default random, or magnitude for a method that holds the dense weight. allocation,
    pattern: as `prune`; allocation is erk, or the method's own.
    layers: name patterns or a callable. storage: `masked` for the slow twin. seed: of the first topology and of all that is
    drawn later; None draws one from torch's generator, so that `torch.manual_seed` decides. own_steps: count Adam's steps for each
    weight from when it came.
    Raises InvalidInput for a bad argument, before anything is changed. DistributedDataParallel is wrapped around `model`
    afterwards: it keeps to the parameters that it finds.

    >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> sparse = sparse_training(model, optimizer, "set", density=0.2, steps=1000)
    >>> model(torch.randn(8, 20)).square().mean().backward()
    >>> sparse.step()
    >>> model[0]
    SparseLinear(in_features=20, out_features=30, density=0.1433, pattern=unstructured, bias=True)
    """
    require_module(model)
    if not hasattr(optimizer, "param_groups"):
        raise InvalidInput(
            f"an optimizer that is a {type(optimizer).__name__}",
            "a torch optimizer",
            "Make it of model.parameters(): it comes second.",
        )
    sparse = _chosen_sparse(model, layers, density)
    asked = density
    if density is None:
        density = _kept(sparse) if sparse else density_of(pattern)
    made = _made(method, density, steps, options)
    if allocation is not None:
        made = replace(made, allocation=allocation)
    if sparse:
        if made.density is None and asked is not None:
            _tell_density(_kept(sparse), asked)
        return Sparsifier(model, optimizer, made, layers=layers, seed=seed, own_steps=own_steps)
    _refuse_wrapper(model)
    made.require_resizable(patterns_of(pattern))
    seed = agreed(seed)
    draw = torch.Generator().manual_seed(seed)
    plan = _first_plan(model, made, density, criterion, batch, pattern=pattern, layers=layers, generator=draw)
    made.require({name: topology.pattern for name, topology in plan.items()})
    held = matrices(model) if made.remembers else {}
    dense = {name: held[name].weight.detach().clone() for name in plan if made.remembers}
    _make_sparse(model, optimizer, plan, storage)
    return Sparsifier(model, optimizer, made, layers=list(plan), seed=seed, dense=dense, own_steps=own_steps)


def _first_plan(
    model: nn.Module, method: Method, density: float | None, criterion: str | None, batch: Any, **given: Any
) -> Plan:
    """What `model` keeps before `method` moves anything, by `criterion` or, if that is None, by what suits the method."""
    criterion = criterion or ("magnitude" if method.remembers else "random")
    first = method.density(0) if method.density else density
    assert first is not None
    shared = "erk" if method.allocation == "global" and criterion == "random" else method.allocation
    return prune(model, criterion, min(1.0, first), batch, allocation=shared, **given)


def _chosen_sparse(
    model: nn.Module, layers: LayerFilter, density: float | None
) -> dict[str, SparseLinear | MaskedLinear]:
    """The sparse layers of those that `layers` selects; none where these are dense, and are to be made sparse."""
    sparse = sparse_layers(model)
    if not sparse:
        return {}
    dense = matrices(model)
    if layers is not None:
        return {name: sparse[name] for name in select({**sparse, **dense}, layers) if name in sparse}
    if dense and density is not None:
        message = (
            f"layers {listed(dense)} stay dense beside layers {listed(sparse)}, which are sparse already and alone are trained "
            f"at density {density:g}. Name the dense ones with layers= to make them sparse, or the sparse ones if it is meant so."
        )
        warnings.warn(message, LeftDense, stacklevel=4)
    return sparse


def _kept(sparse: Mapping[str, SparseLinear | MaskedLinear]) -> float:
    """The density of layers that are sparse already."""
    return Plan({name: layer.topology for name, layer in sparse.items()}).density


def _tell_density(kept: float, asked: float) -> None:
    """Warns OtherDensity where layers that stay as they are keep clearly another share of their weights than was `asked`."""
    if not math.isclose(kept, asked, rel_tol=0.05):
        message = (
            f"layers that are sparse already stay as they are, at density {kept:.4g}, where {asked:g} was asked. Leave density= out, "
            "or prune them to it first: pollard.sparsify_(model, pollard.prune(model, ...))."
        )
        warnings.warn(message, OtherDensity, stacklevel=4)


def _made(method: str | Method, density: float | None, steps: int, options: dict[str, Any]) -> Method:
    if isinstance(method, Method):
        return method
    require_one_of("method", method, METHODS, "rigl is a good start.")
    require_density(density)
    assert density is not None
    if not isinstance(steps, Real) or not steps >= 1:
        raise InvalidInput(
            f"steps={steps!r}", "how many steps training will take, at least 1", "Pass epochs * len(loader)."
        )
    require_options(method, options, options_of(METHODS[method]))
    return replace(METHODS[method](density, steps, **options), steps=steps)


def _refuse_wrapper(model: nn.Module) -> None:
    processes.refuse_shards(
        {name: layer.weight for name, layer in matrices(model).items()},
        "a model that is made sparse before it is sharded",
        "Call pollard.sparsify_(model, plan), then fully_shard(model), and make the optimizer then; or leave fully_shard "
        "out and wrap the sparse model in DistributedDataParallel.",
    )
    if processes.bare(model) is not model or processes.is_wrapped(model):
        raise InvalidInput(
            "a dense model within DistributedDataParallel, which keeps to the parameters that it found",
            "a model that is made sparse first and wrapped then",
            "sparsifier = pollard.rigl(model, ...) comes before ddp = DistributedDataParallel(model).",
        )


def _make_sparse(model: nn.Module, optimizer: Optimizer, plan: Plan, storage: Storage) -> None:
    """`sparsify_`, with `optimizer` following from the old parameters to the new."""
    with composing(model, list(plan)) as taken:
        linear = linear_layers(model)
        before = {name: linear[name] for name in select(linear, list(plan))}
        first = {id(part): old for old, parts in taken.heirs for part, _ in parts}
        weights = {name: first.get(id(layer.weight), layer.weight) for name, layer in before.items()}
        require_stepped(optimizer, {name: weight for name, weight in weights.items() if weight.requires_grad})
        sparsify_(model, plan, storage=storage)
    for old, parts in taken.heirs:
        rebind(optimizer, old, parts)
    for name, layer in before.items():
        made = model.get_submodule(name)
        assert isinstance(made, SparseLinear | MaskedLinear)
        weight = made.values if isinstance(made, SparseLinear) else made.weight
        rebind(optimizer, layer.weight, [(weight, _converting(plan[name], storage))])
        if layer.bias is not None and made.bias is not None:
            rebind(optimizer, layer.bias, [(made.bias, lambda entry: entry)])


def _converting(topology: Topology, storage: Storage) -> Callable[[Tensor], Tensor]:
    if storage == "compressed":
        return lambda entry: SparseMatrix.from_dense(entry, topology).values
    return lambda entry: entry.masked_fill(~topology.mask(), 0.0)


__all__ = ["sparse_training"]
