"""The contract: a module of torch whose weights are matrices, as a module that has a linear layer for each of them.

Whatever serves an `nn.Linear` serves such a weight then: criteria, allocations, methods, storage, files.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pollard.copies import carry_marks
from pollard.lazy import LazyWeight, not_written, tell_writes
from pollard.symbolic import called, tracer_of

# Kinds of modules by the dotted name of their class: those of libraries that are not there need not be imported.
COMPOSITES: dict[str, type[Composite]] = {}
_PLAIN = (int, float, bool, str, tuple, list, type(None))
Kind = TypeVar("Kind", bound="type[Composite]")


class Composite(nn.Module, ABC):
    """`whole` rebuilt: each of its matrices is the weight of a linear layer, `parts` says which; the rest is taken over.

    Parameters that are no matrix stay the very same objects under their names. `whole()` leads back. Whoever reads one of the
    parameters that were taken apart, as `conv.weight`, gets it made of the parts, with gradients; what a constructor was
    given, as `kernel_size`, can be read and set as before.

    A subclass says what its parts are and what they compute. Weights that are not stacked matrices in rows override
    `matrix` and `tensor` too.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self._parts = self.parts(whole)
        # All that the constructor was given, without a number in it; in a tuple, so that it is no submodule.
        bare = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in whole.parameters()}
        self._frame = (copy.deepcopy(whole, bare),)
        held = dict(whole.named_parameters())
        for part, name in self._parts.items():
            layer = nn.Linear(1, 1, bias=False, device="meta")
            matrix = self.matrix(part, held[name].detach())
            layer.out_features, layer.in_features = matrix.shape
            layer.weight = nn.Parameter(matrix, held[name].requires_grad)
            _mark(held[name], layer.weight)
            layer.register_parameter("bias", held.get(f"{part}.bias"))
            self.add_module(part, layer)
        # As torch keeps them, those that there are none of besides: a bias may be given later.
        apart = {*self._parts.values(), *(f"{part}.bias" for part in self._parts)}
        self._parameters.update({name: each for name, each in (whole._parameters | held).items() if name not in apart})  # noqa: SLF001
        for name, buffer in whole.named_buffers():
            self.register_buffer(name, buffer, persistent=name not in whole._non_persistent_buffers_set)  # noqa: SLF001
        self.train(whole.training)

    @staticmethod
    def refusal(whole: nn.Module) -> str | None:
        """Why `whole` cannot be rebuilt, if it cannot: what it has, for a message."""
        del whole
        return None

    @classmethod
    def parts(cls, whole: nn.Module) -> dict[str, str]:
        """The linear layers by name, each with the name of the parameter that holds its matrix; several stand in rows.

        By default one, `linear`, of `weight`.
        """
        del whole
        return {"linear": "weight"}

    def matrix(self, part: str, tensor: Tensor) -> Tensor:
        """The matrix `(rows, columns)` of `part`, a view of its parameter, or of anything of that one's shape."""
        among = self._sharing(self._parts[part])
        return tensor.chunk(len(among))[among.index(part)].flatten(1)

    def tensor(self, name: str, matrices: Mapping[str, Tensor]) -> Tensor:
        """The parameter `name`, of the matrices of its parts."""
        among = [matrices[part] for part in self._sharing(name)]
        joined = among[0] if len(among) == 1 else torch.cat(among)
        return joined.reshape(self._shape(name))

    def axes(self, part: str, matrix: tuple[int, int]) -> tuple[int, ...]:
        """The sizes that allocations by size go by: those of the `matrix` of `part`, its columns apart where they have several."""
        del part
        return matrix

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `whole` computes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` computes; for torch.fx one call, as the module that this was made of is."""
        tracer = None if torch.compiler.is_compiling() else tracer_of(args, kwargs)
        if tracer is None:
            return super().__call__(*args, **kwargs)
        return tracer.call_module(self, lambda *given, **named: called(self, tracer, given, named), args, kwargs)

    def whole(self) -> nn.Module:
        """The module that this was made of, with what the parts hold now; each of them is dense."""
        found = copy.deepcopy(self._frame[0])
        weights = {part: getattr(self, part).weight.to_dense().detach() for part in self._parts}
        for name in [name for name, _ in found.named_parameters()]:
            owner, _, key = name.rpartition(".")
            if name in self._parts.values():
                trained = any(getattr(self, part).weight.requires_grad for part in self._sharing(name))
                new = nn.Parameter(self.tensor(name, weights), trained)
                _mark(getattr(self, self._sharing(name)[0]).weight, new)
            elif self._is_bias(name):
                new = getattr(self, owner).bias
            else:
                new = getattr(self, name)
            setattr(found.get_submodule(owner), key, new)
        self._hang_on(found)
        return found.train(self.training)

    def _hang_on(self, whole: nn.Module) -> None:
        """Gives `whole` what was hung on this since it was made: attributes, buffers, parameters, modules."""
        for name, buffer in self._buffers.items():
            whole.register_buffer(name, buffer, persistent=name not in self._non_persistent_buffers_set)
        for held in ("_parameters", "_modules"):
            new = {name: each for name, each in vars(self)[held].items() if name not in self._parts}
            vars(whole)[held].update({name: each for name, each in new.items() if name not in vars(whole)[held]})
        known = {"_parts", "_frame", *vars(whole)}
        own = {name: each for name, each in vars(self).items() if name not in known and not hasattr(type(self), name)}
        vars(whole).update(own)

    def reset_parameters(self) -> None:
        """Draws anew: each layer its weight, all else as the module that this was made of draws it. What is kept stays."""
        for part in self._parts:
            getattr(self, part).reset_parameters()
        # Weights are on meta there, where nothing is drawn.
        bare: Any = copy.deepcopy(self._frame[0])
        for name, _ in self._frame[0].named_parameters():
            owner, _, key = name.rpartition(".")
            if name not in self._parts.values():
                setattr(bare.get_submodule(owner), key, getattr(self.get_submodule(owner), key))
        draw = getattr(bare, "reset_parameters", None) or getattr(bare, "_reset_parameters", None)
        if draw is not None:
            draw()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch does, but for one that was taken apart, or what torch.nn.utils.prune would keep of it."""
        if name.removesuffix("_orig") in vars(self).get("_parts", {}).values():
            raise not_written("an assignment")
        super().register_parameter(name, param)
        if name in self._frame[0]._parameters:  # noqa: SLF001 - torch has no other way to see that there is none
            bare = None if param is None else nn.Parameter(param.detach().to("meta"), param.requires_grad)
            self._frame[0].register_parameter(name, bare)

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch does, and what the constructor was given, as `stride`, for `whole` too; InvalidInput for a weight that was taken apart."""
        if name in vars(self).get("_parts", {}).values():
            raise not_written("an assignment")
        super().__setattr__(name, value)
        if isinstance(value, _PLAIN) and "_frame" in vars(self) and name in vars(self._frame[0]):
            setattr(self._frame[0], name, value)

    def _sharing(self, name: str) -> list[str]:
        return [part for part, own in self._parts.items() if own == name]

    def _is_bias(self, name: str) -> bool:
        return name.endswith(".bias") and name.removesuffix(".bias") in self._parts

    def _shape(self, name: str) -> torch.Size:
        return self._frame[0].get_parameter(name).shape

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_frame" not in vars(self):
                raise
            if name in self._parts.values():
                return self._whole(name)
            told = getattr(self._frame[0], name, self)
            # Lists of parameters, as recurrent modules have, would be of such without numbers.
            if isinstance(told, _PLAIN) and not any(isinstance(each, Tensor | list) for each in _within(told)):
                return told
            raise

    def _whole(self, name: str) -> Tensor:
        """The parameter `name` to read: a view of the only part's own, or what is made of several, or of sparse ones."""
        weights = {part: getattr(self, part).weight for part in self._sharing(name)}
        parts = list(weights.values())
        if torch.compiler.is_compiling() or not any(isinstance(part, LazyWeight) for part in parts):
            joined = self.tensor(name, weights)
            if len(parts) > 1:
                tell_writes(joined)
            return joined

        def make() -> Tensor:
            return self.tensor(name, {part: weight.to_dense() for part, weight in weights.items()})

        def gradient() -> Tensor | None:
            found = {part: weight.grad for part, weight in weights.items()}
            return None if None in found.values() else self.tensor(name, found)

        return LazyWeight(self._shape(name), parts, make, gradient)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A state of the module that this was made of is taken apart too."""
        for part, name in self._parts.items():
            if prefix + name in state_dict and f"{prefix}{part}.weight" not in state_dict:
                state_dict[f"{prefix}{part}.weight"] = self.matrix(part, state_dict[prefix + name])
        for name in set(self._parts.values()):
            own = {f"{part}.weight" for part in self._parts}
            if name not in own:
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What `print` shows: what this was made of."""
        return f"of {type(self._frame[0]).__name__}({self._frame[0].extra_repr()})"


def _mark(old: nn.Parameter, new: nn.Parameter) -> None:
    # Weights without memory have attributes of their own.
    if type(old) is nn.Parameter:
        carry_marks(old, new)


def _within(told: Any) -> Any:
    return told if isinstance(told, list | tuple) else ()


def composite(*kinds: type[nn.Module] | str) -> Callable[[Kind], Kind]:
    """Have modules of `kinds` rebuilt by the class below: types, or dotted names of types that need not be there.

    ::

        @composite(nn.Bilinear)
        class ComposedBilinear(Composite):
            ...
    """

    def register(made: Kind) -> Kind:
        COMPOSITES.update({kind if isinstance(kind, str) else dotted(kind): made for kind in kinds})
        return made

    return register


def dotted(kind: type) -> str:
    """The full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def biased(y: Tensor, bias: Tensor | None) -> Tensor:
    """`y` with `bias`, if there is one, in the precision of `y`: under autocast that is not the bias's own."""
    return y if bias is None else y + bias.to(y.dtype)


def kind_for(module: nn.Module) -> type[Composite] | None:
    """What rebuilds `module`: by its class, or by one that it derives from without another forward."""
    own = type(module)
    for kind in own.__mro__:
        made = COMPOSITES.get(dotted(kind))
        if made is not None:
            return made if own.forward is kind.forward else None  # type: ignore[attr-defined]  # modules have one
    return None


__all__ = ["COMPOSITES", "Composite", "biased", "composite", "kind_for"]
