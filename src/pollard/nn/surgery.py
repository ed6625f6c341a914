"""Dense layers out, sparse layers in, and back: in place, checked before anything is touched."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

from torch import Tensor, nn
from torch.nn.utils import prune

from pollard.composites import Composing, composed, holders, put, put_together, refuse_dense, whole_again
from pollard.composites.convolution import ComposedConv
from pollard.copies import carry_marks
from pollard.coverage import Coverage
from pollard.errors import InvalidInput, NothingMatched
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.nn.carried import carry, refuse_bound, refuse_hooked, refuse_in_the_way
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.orphans import orphan
from pollard.references import Reference, references, refuse_fixed
from pollard.selection import (
    LayerFilter,
    is_made_anew,
    linear_layers,
    listed,
    refuse_meta,
    refuse_tied,
    refuse_unready,
    require_module,
    require_prunable,
    select,
    unmatched,
)
from pollard.streamed.birth import give_memory_, streamed_layers

Storage = Literal["compressed", "masked"]
_HOOKS = {f"_{when}_hooks" for when in ("forward", "forward_pre", "backward", "backward_pre")}
Model = TypeVar("Model", bound=nn.Module)
_LOG = logging.getLogger("pollard")
_LAYERS: dict[str, type[SparseLinear | MaskedLinear]] = {"compressed": SparseLinear, "masked": MaskedLinear}


def sparsify_(
    model: Model, plan: Mapping[str, Topology], *, layers: LayerFilter = None, storage: Storage = "compressed"
) -> Model:
    """Replaces each linear layer that `plan` names by a sparse one that keeps what the plan keeps; returns `model`.

    layers: take only these of the plan, as name patterns or a callable `(name, module) -> bool`.
    storage: `compressed` stores what is kept (`SparseLinear`); `masked` stores a dense weight under a mask
    (`MaskedLinear`), the slow twin to compare with.

    Kept weights stay as they are, unless the plan brings new values for them (`Plan.updated`). Biases, training flags,
    `requires_grad`, dtype and device are carried over, and so are attributes, buffers and modules that were added to a layer
    and attributes of its parameters. All checks come before the first replacement, so a call that raises a
    Pollard error has changed nothing; each dense weight is let go before the next layer is made. A layer that modules also hold in lists, tuples, dicts or attributes is replaced there too. The parameters
    are new objects: make the optimizer afterwards. What is sparse then is told to the logger `pollard`, and is
    `Coverage.of(model)`.
    What `torch.nn.utils.prune` masks in these layers, dense and sparse, is made permanent.
    Raises NothingMatched for names the model does not have, InvalidInput for a topology of another shape, tied
    parameters, hooks on a layer or its parameters, a `forward` or a compiled form of its own (they would be lost), an added
    attribute whose name a sparse layer uses, a weight that is lazy, parametrized or made by
    a hook, a layer that a function holds on to, or a model that is itself a linear layer.

    A layer that is sparse already is made smaller in place, in its own storage; InvalidInput where the plan keeps what it has
    not. The optimizer of a Sparsifier follows at its next step; make another anew.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> type(sparsify_(model, {"0": Topology.full((3, 4))})[0]).__name__
    'SparseLinear'
    """
    if storage not in get_args(Storage):
        raise InvalidInput(
            f"storage={storage!r}", "one of " + ", ".join(get_args(Storage)), "Leave storage= out for 'compressed'."
        )
    require_module(model)
    if not isinstance(plan, Mapping):
        raise InvalidInput(
            f"a plan that is a {type(plan).__name__}",
            "layer name to topology",
            "Decide first: plan = pollard.prune(model, ...).",
        )
    _refuse_root(model, nn.Linear, "SparseLinear.from_dense(linear, topology)")
    names = select(_planned(composed(model, plan), plan), layers)
    with composing(model, names):
        _sparsify(model, plan, names, storage)
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info("%s", Coverage.of(model))
    return model


def _sparsify(model: nn.Module, plan: Mapping[str, Topology], names: list[str], storage: Storage) -> None:
    updated: Mapping[str, Tensor] = getattr(plan, "updated", {})
    sparse = {name: layer for name, layer in sparse_layers(model).items() if name in names}
    names = [name for name in names if name not in sparse]
    refuse_tied(model, names)
    if storage == "compressed":
        refuse_meta({name: model.get_submodule(name) for name in names})
    found = replaceable(model, names)
    for name in (*sparse, *names):
        _make_permanent(model.get_submodule(name))
    for name, layer in sparse.items():
        layer.shrink_(plan[name], updated.get(name))
    for name in names:
        dense = model.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        source = _with_values(dense, plan[name], updated[name]) if name in updated else dense
        swap(model, dense, _LAYERS[storage].from_dense(source, plan[name]), found)
        del dense, source  # it is let go before the next is made


@contextmanager
def composing(model: nn.Module, names: Iterable[str]) -> Iterator[Composing]:
    """Rebuilds in place what linear layers of `names` take; undone where the block fails."""
    paths = holders(model, names)
    _refuse_root(
        model, tuple(map(type, filter(lambda each: each is model, paths.values()))), "another module around it"
    )
    replaceable(model, paths)
    with Composing(model, paths) as made:
        yield made
    orphan([old for old, _ in made.heirs])
    for module in made.made.values():
        _on_its_own(module)


def _on_its_own(module: nn.Module) -> None:
    """Gives each parameter memory of its own: a part of what was laid out in one piece, as for cuDNN, would keep all of that."""
    for parameter in module.parameters():
        if parameter.untyped_storage().nbytes() > parameter.nbytes:
            parameter.data = parameter.detach().clone()


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear | MaskedLinear]:
    """The sparse layers of `model` by name, compressed and masked; one that is used in several places under its first.

    >>> list(sparse_layers(sparsify_(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {"0": Topology.full((3, 4))})))
    ['0']
    """
    return {name: each for name, each in model.named_modules() if isinstance(each, SparseLinear | MaskedLinear)}


def densify_(model: Model, *, layers: LayerFilter = None) -> Model:
    """Replaces each sparse layer of `model`, compressed or masked, by the `nn.Linear` it equals; returns `model`.

    Weights that `pollard.never_dense` made without memory get it, and stay the same numbers: as new parameters.
    layers: take only these, as name patterns or a callable `(name, module) -> bool`. What is carried over and the errors are
    those of `sparsify_`; raises NothingMatched where no layer is sparse or without memory, InvalidInput for a layer with a fused activation.

    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> densify_(sparsify_(model, {"0": Topology.full((3, 4))}))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
    )
    """
    require_module(model)
    _refuse_root(model, (SparseLinear, MaskedLinear), "its to_dense()")
    streamed = streamed_layers(model)
    there = {**sparse_layers(model), **streamed}
    if not there:
        raise NothingMatched(
            "a model without sparse layers", "at least one", "It is dense already: leave this call out."
        )
    chosen = select(there, layers)
    names = [name for name in chosen if name not in streamed]
    refuse_unready(model, names, masks=True)
    refuse_tied(model, names)
    found = replaceable(model, names)
    replaceable(model, whole_again(model, names))
    fused = [path for path in _with_holders(names) if is_fused(model.get_submodule(path))]
    if fused:
        raise InvalidInput(
            f"a fused activation in {listed(fused)}",
            "plain linear layers",
            "Set layer.activation = None and put the module that it is behind it.",
        )
    for name in names:
        sparse = model.get_submodule(name)
        assert isinstance(sparse, SparseLinear | MaskedLinear)
        _make_permanent(sparse)
        swap(model, sparse, sparse.to_dense(), found)
    for name in streamed.keys() & set(chosen):
        give_memory_(streamed[name])
    put_together(model)
    return model


def is_fused(module: nn.Module) -> bool:
    """Whether `module` is a layer, or a convolution around one, with a fused activation."""
    return isinstance(module, SparseLinear | ComposedConv) and module.activation is not None


def _with_holders(names: Iterable[str]) -> list[str]:
    """`names`, and those of the modules that hold them."""
    return list(dict.fromkeys(path for name in names for path in (name, name.rpartition(".")[0]) if path))


def _make_permanent(layer: nn.Module) -> None:
    """Multiplies what torch.nn.utils.prune masks by its masks, once and for all: the layer computes what it did."""
    for hook in list(layer._forward_pre_hooks.values()):  # noqa: SLF001 - torch has no other way to see them
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)  # noqa: SLF001


def _with_values(dense: nn.Linear, topology: Topology, values: Tensor) -> nn.Linear:
    """`dense` with other weights."""
    changed = nn.Linear(dense.in_features, dense.out_features, bias=False, device="meta")
    weight = SparseMatrix(values.to(dense.weight.device, dense.weight.dtype), topology).to_dense()
    changed.weight = nn.Parameter(weight, dense.weight.requires_grad)
    changed.bias = dense.bias
    return changed.train(dense.training)


def _planned(model: nn.Module, plan: Mapping[str, Topology]) -> dict[str, nn.Module]:
    """The modules that `plan` names, each a linear layer of the planned shape."""
    linear = linear_layers(model)
    if not sparse_layers(model):
        require_prunable(model)
    modules = dict(model.named_modules())
    for name, topology in plan.items():
        sparse = modules.get(name)
        if isinstance(sparse, SparseLinear | MaskedLinear):
            _refuse_growth(name, sparse.topology, topology)
            if is_made_anew(sparse):
                refuse_unready(model, [name], masks=True)
            linear[name] = sparse  # type: ignore[assignment]  # not dense any more
            continue
        if name not in linear:
            refuse_dense(model, [name])
            raise unmatched(name, linear)
        refuse_unready(model, [name], masks=True)
        shape = (linear[name].out_features, linear[name].in_features)
        if topology.shape != shape:
            raise InvalidInput(
                f"a topology of shape {topology.shape} for layer {name!r}",
                f"{shape}, as its weight",
                "Make the plan from this model.",
            )
    return {name: linear[name] for name in plan}


def _refuse_growth(name: str, kept: Topology, asked: Topology) -> None:
    same = kept.shape == asked.shape and kept.pattern == asked.pattern
    if not same or len(kept.difference(asked).grown):
        raise InvalidInput(
            f"layer {name!r}, which is sparse already: {kept!r}",
            "a plan that keeps a part of what it keeps",
            "Decide with pollard.prune(model, ...), which prunes sparse layers further, or densify_(model) first.",
        )


def _refuse_root(model: nn.Module, kinds: type | tuple[type, ...], instead: str) -> None:
    if isinstance(model, kinds):
        raise InvalidInput(
            f"a model that is itself a {type(model).__name__}",
            "a module that holds the layers to replace",
            f"Wrap it, as in nn.Sequential(layer), or use {instead}.",
        )


def replaceable(model: nn.Module, names: Iterable[str]) -> list[Reference]:
    """All places that hold the layers, once it is sure that each can be given another and that nothing would be lost."""
    layers = {model.get_submodule(name): name for name in names}
    _refuse_hooks(layers)
    _refuse_patched(layers)
    refuse_hooked(layers)
    refuse_bound(layers)
    refuse_in_the_way(layers)
    found = references(model, layers)
    refuse_fixed(found, layers)
    return found


def _refuse_patched(layers: Mapping[nn.Module, str]) -> None:
    for module, name in layers.items():
        if "forward" in vars(module):
            raise InvalidInput(
                f"layer {name!r} with a forward of its own, set on the instance",
                "a layer that computes what its class does: the other would be lost",
                "Undo it, as in `del layer.forward` or accelerate's remove_hook_from_module(layer), or leave the layer out "
                "with layers=.",
            )


def _refuse_hooks(layers: Mapping[nn.Module, str]) -> None:
    for module, name in layers.items():
        hooks = [hook for kind, held in vars(module).items() if kind in _HOOKS for hook in held.values()]
        # A sparsifier that watches a layer does not miss it; torch's masks are made permanent.
        if not all(getattr(hook, "only_watches", False) or isinstance(hook, prune.BasePruningMethod) for hook in hooks):
            raise InvalidInput(
                f"layer {name!r} with hooks",
                "a layer without: they would be lost",
                "Remove the hooks, and register them again afterwards.",
            )


def swap(model: nn.Module, old: nn.Module, new: nn.Module, found: list[Reference]) -> None:
    """Puts `new` wherever `old` is used, with its flags and what users hung on it.

    Of the places `found`, those of `old` are done with.
    """
    new.train(old.training)
    for was, now in zip(_parameters(old), _parameters(new), strict=True):
        now.requires_grad_(was.requires_grad)
        carry_marks(was, now)
    carry(old, new)
    orphan(_parameters(old))
    put(model, old, new, [reference for reference in found if reference.layer is old])
    found[:] = [reference for reference in found if reference.layer is not old]


def _parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The weight or values, then the bias if there is one."""
    own = dict(layer.named_parameters(recurse=False))
    return [own[name] for name in ("weight", "values", "bias") if name in own]
