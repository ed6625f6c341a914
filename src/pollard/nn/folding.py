"""Batch norms folded into the layers before them, and activations fused, for inference: in place, or not at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pollard.composites import put
from pollard.errors import InvalidInput
from pollard.nn.activations import activation_of
from pollard.nn.flow import Flow, is_hooked
from pollard.nn.scaling import LINEAR, Target, affine, folded, takes_activation, target_of, write
from pollard.nn.surgery import is_fused
from pollard.nn.watched import is_watched
from pollard.references import Reference, references
from pollard.selection import listed

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LOG = logging.getLogger("pollard")


@dataclass(frozen=True, slots=True)
class Folding:
    """What `fold_norms_` has done, by the names of modules.

    norms: each norm that was folded, and the layer that it is in now. activations: each that was fused, and the layer. left: each
    norm that stays, and why.

    >>> print(Folding({"1": "0"}, {"2": "0"}, {"4": "it is called in several places"}))
    folded 1 of 2 batch norms, fused 1 activation; left: '4' (it is called in several places)
    """

    norms: Mapping[str, str]
    activations: Mapping[str, str]
    left: Mapping[str, str]

    def __str__(self) -> str:
        total, fused = len(self.norms) + len(self.left), len(self.activations)
        told = f"folded {len(self.norms)} of {total} batch norms, fused {fused} activation{'' if fused == 1 else 's'}"
        left = ", ".join(f"{name!r} ({why})" for name, why in self.left.items())
        return f"{told}; left: {left}" if left else told


class FoldedNorm(nn.Identity):
    """What an `nn.BatchNorm1d` leaves behind: the identity on inputs of `dims` axes, the second of which the layer before it made.

    Other inputs were normed along another axis; InvalidInput for them.

    >>> FoldedNorm(2)(torch.ones(3, 4)).shape
    torch.Size([3, 4])
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """`input` itself."""
        if not isinstance(input, fx.Proxy) and input.dim() != self.dims:
            raise InvalidInput(
                f"an input of {input.dim()} axes where an nn.BatchNorm1d was folded",
                f"one of {self.dims}: it norms the second axis, which then is not that of the layer before it",
                "Build the model anew, and fold those of its modules that do not have this norm in them.",
            )
        return input


@torch.no_grad()
def fold_norms_(model: nn.Module) -> Folding:
    """Folds each batch norm of `model` that one layer alone feeds into that layer, and fuses activations, for inference; in place.

    ``w[o] gamma[o] / sqrt(var[o] + eps)`` and ``(b[o] - mean[o]) gamma[o] / sqrt(var[o] + eps) + beta[o]`` take the places of weights
    and bias: the model computes what it did, up to rounding, and what is kept stays kept. The norm becomes an `nn.Identity`. Layers are
    linear ones and convolutions, sparse in either storage, or dense. An `nn.ReLU`, `nn.GELU` or `nn.SiLU`, or a module that does
    nothing but call their function, that alone reads a sparse convolution or a `SparseLinear`, or the norm behind it, is computed there,
    and becomes an identity too; `torch.relu` and its like elsewhere are code, and stay.
    Half precision is folded in float32, and rounded once.

    Who reads what is seen by tracing a copy of the model symbolically, called without the arguments that have defaults. Where
    that cannot be, its largest modules that can be traced are looked at, each as its own `forward` calls what is in it. Norms
    that stay are told in what is returned, with the reason: fed or read in several places, no running statistics, hooks. Calling
    it again finds nothing more to do.

    Raises InvalidInput for a model in training mode, one that cannot be copied, or one of which no part can be traced; whatever is
    raised, the model is as it was. A folded model is another model than its class builds: its state has biases and no norms. So keep the
    state of the unfolded model and fold what `load_sparse` returns; or load the state of a folded one into a model of the class that was
    folded too, dense as it is. `densify_` refuses fused activations.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)).eval()
    >>> print(fold_norms_(model))
    folded 1 of 2 batch norms, fused 0 activations; left: '3' (nothing folds into '2', a ReLU)
    """
    _refuse_training(model)
    with torch.inference_mode(False):  # numbers made in that mode could never be trained
        fold = _Fold(model)
        steps = [step for step in map(fold.step, fold.targets()) if step.norms or step.activation is not None]
        fold.commit(steps)
    folding = fold.told(steps)
    _LOG.info("%s", folding)
    return folding


@dataclass(frozen=True, slots=True)
class _Step:
    """What is done to one layer: numbers and bias as they will be, the norms in them, the activation that is fused."""

    target: Target
    norms: tuple[nn.Module, ...] = ()
    numbers: Tensor | None = None
    bias: Tensor | None = None
    activation: nn.Module | None = None


@dataclass(slots=True)
class _Fold:
    """All that is known of `model` before anything in it changes."""

    model: nn.Module
    flow: Flow = field(init=False)
    names: dict[nn.Module, str] = field(init=False)
    owners: Counter[int] = field(init=False)
    found: list[Reference] = field(init=False)
    why: dict[nn.Module, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = {module: name for name, module in self.model.named_modules()}
        norms = [module for module in self.names if isinstance(module, _BatchNorm)]
        self.flow = Flow.of(self.model)
        if norms and not self.flow.parts:
            raise InvalidInput(
                f"a model of which no part can be traced symbolically: {self.flow.untraced}",
                "modules whose forward calls others without looking at numbers or sizes, as nn.Sequential does",
                "Put layer and norm into an nn.Sequential, or a module of their own, and call that.",
            )
        self.owners = Counter(id(each) for module in self.names for each in module.parameters(recurse=False))
        given_up = [
            each for each in self.names if isinstance(each, _BatchNorm) or activation_of(each) or target_of(each)
        ]
        self.found = list(references(self.model, given_up))

    def targets(self) -> list[Target]:
        return [target for module in self.names if (target := target_of(module)) is not None]

    def step(self, target: Target) -> _Step:
        """Follows what `target` gives from reader to reader."""
        step, place = _Step(target), target.holder
        refused = self._refusal(target)
        scale = shift = None
        while (reader := self.flow.reader(place)) is not None and isinstance(reader, _BatchNorm):
            refused = refused or self._refusal_of_norm(reader, target)
            if refused is None:
                scale, shift = affine(reader, scale, shift)
                made = folded(target, scale, shift)
                refused = None if made is not None else f"what {self._name(target)} holds would overflow"
            if refused is not None:
                self.why[reader] = refused
                return step
            assert made is not None
            step = replace(step, norms=(*step.norms, reader), numbers=made[0], bias=made[1])
            place = reader
        if refused is not None or reader is None or activation_of(reader) is None:
            return step
        fuses = takes_activation(target) and self._stays_put(reader) is None
        return replace(step, activation=reader) if fuses else step

    def commit(self, steps: list[_Step]) -> None:
        """Does all of it, or nothing."""
        with ExitStack() as undone:
            for step in steps:
                if step.numbers is not None and step.bias is not None:
                    write(step.target, step.numbers, step.bias, undone)
                for norm in step.norms:
                    self._replace(norm, _rest(step.target, norm), undone)
                if step.activation is not None:
                    self._replace(step.activation, nn.Identity(), undone)
                    holder: Any = step.target.holder
                    undone.callback(setattr, holder, "activation", None)
                    holder.activation = activation_of(step.activation)
            undone.pop_all()

    def told(self, steps: list[_Step]) -> Folding:
        norms = {self.names[norm]: self.names[step.target.holder] for step in steps for norm in step.norms}
        fused = {
            self.names[step.activation]: self.names[step.target.holder] for step in steps if step.activation is not None
        }
        left = {name: module for module, name in self.names.items() if isinstance(module, _BatchNorm)}
        why = {name: self._why(module) for name, module in left.items() if name not in norms}
        return Folding(norms, fused, why)

    def _replace(self, old: nn.Module, new: nn.Module, undone: ExitStack) -> None:
        new.train(old.training)
        places = [reference for reference in self.found if reference.layer is old]
        undone.callback(put, self.model, new, old, [replace(reference, layer=new) for reference in places])
        put(self.model, old, new, places)

    def _refusal(self, target: Target) -> str | None:
        """Why `target` cannot take in anything, if it cannot."""
        name, inner = self._name(target), {target.holder, target.layer}
        if is_fused(target.holder) or is_fused(target.layer):
            return f"an activation is fused into {name}"
        if any(map(is_watched, inner)):
            return f"hooks on {name}"
        if any("forward" in vars(each) or vars(each).get("_compiled_call_impl") is not None for each in inner):
            return f"{name} has a forward of its own"
        if self.flow.read & inner:
            return f"what {name} holds is read past it"
        if any(self.owners[id(each)] > 1 for each in (target.numbers, target.bias) if each is not None):
            return f"{name} shares a parameter with another module"
        return self._elsewhere(target.holder, name)

    def _refusal_of_norm(self, norm: nn.Module, target: Target) -> str | None:
        if type(norm) not in _NORMS:
            return f"it is a {type(norm).__name__}"
        if norm.running_mean is None or norm.running_var is None:
            return "it has no running statistics"
        if len(norm.running_mean) != target.rows:  # type: ignore[arg-type]  # a tensor
            return f"it norms another axis than that of {self._name(target)}"
        return self._stays_put(norm)

    def _stays_put(self, module: nn.Module) -> str | None:
        """Why `module` cannot be given up, if it cannot."""
        if is_hooked(module) or "forward" in vars(module):
            return "it has hooks or a forward of its own"
        if module in self.flow.read:
            return "what it holds is read past it"
        if any(reference.put is None for reference in self.found if reference.layer is module):
            return "a function holds on to it"
        return self._elsewhere(module, "it")

    def _elsewhere(self, module: nn.Module, name: str) -> str | None:
        """Where a model was traced in parts only, the rest may call what has several places."""
        if self.flow.untraced is None:
            return None
        places = sum(1 for _, each in self.model.named_modules(remove_duplicate=False) if each is module)
        held = any(reference.layer is module for reference in self.found)
        return f"{name} is held in several places, and the whole cannot be traced" if held or places > 1 else None

    def _why(self, norm: nn.Module) -> str:
        if norm in self.why:
            return self.why[norm]
        calls = self.flow.calls.get(norm, [])
        if not calls:
            return "nothing calls it" if self.flow.untraced is None else f"its call is not seen: {self.flow.untraced}"
        if len(calls) > 1:
            return "it is called in several places"
        source = calls[0].source
        if source is None:
            return "no layer alone feeds it"
        if target_of(source) is None:
            return f"nothing folds into {self.names[source]!r}, a {type(source).__name__}"
        several = len(self.flow.calls[source]) > 1
        return f"{self.names[source]!r} is {'called' if several else 'read'} in several places"

    def _name(self, target: Target) -> str:
        return repr(self.names[target.holder])


def _refuse_training(model: nn.Module) -> None:
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    training = [name for name, norm in norms.items() if norm.training]
    if model.training or training:
        raise InvalidInput(
            f"a model in training mode{f', with {listed(training)}' if training else ''}",
            "one in eval mode: in training its norms take the statistics of each batch",
            "Call model.eval() first; fold a copy.deepcopy(model) if training goes on.",
        )


def _rest(target: Target, norm: nn.Module) -> nn.Module:
    """What takes the place of `norm`: only `nn.BatchNorm1d` takes inputs of more than one number of axes."""
    if type(norm) is not nn.BatchNorm1d:
        return nn.Identity()
    return FoldedNorm(2 if isinstance(target.holder, LINEAR) else 3)


__all__ = ["FoldedNorm", "Folding", "fold_norms_"]
