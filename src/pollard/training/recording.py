"""The products that a weight's `.grad` is made of: noticed where they happen, counted once they have arrived there."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.hooks import unserializable_hook

from pollard.activations import read_off
from pollard.composites.convolution import MadeAgain
from pollard.errors import InvalidInput
from pollard.nn.linear import SparseLinear

# What is unfolded of images is not kept, but made again.
Source = Tensor | MadeAgain
Product = tuple[Source, Tensor]


def parameter_of(layer: nn.Module) -> nn.Parameter:
    """The parameter that holds the weight of a sparse layer: its values, or the dense weight under a mask."""
    parameter = layer.values if isinstance(layer, SparseLinear) else layer.weight
    assert isinstance(parameter, nn.Parameter)
    return parameter


class Listener(Protocol):
    """Who is told about a weight's `.grad`."""

    def before(self) -> None:
        """Something is about to be added; `.grad` is still what it was."""

    def added(self, products: list[Product]) -> None:
        """It was added, and is the sum of ``dy^T x`` over `products` `(x, dy)`, `(..., in)` and `(..., out)`."""

    def forget(self) -> None:
        """This is the copy of a layer, and nobody cares."""


class Recorder:
    """Tells `listener` of every product through `layer` whose ``dy^T x`` was added to `.grad` of its weight.

    ::

        y = x W^T,  backward of dy:     dy^T x    noticed by a hook on y
        dx = dy W,  backward of u:      dy^T u    noticed by a hook on dx, where derivatives are derived again (penalties)

    Each counts once a hook of the weight says that this very backward pass has added to `.grad`: `torch.autograd.grad` and
    `backward(inputs=...)` never do.

    third: whether something was added that is noticed by neither, a derivative of the third order.
    """

    def __init__(self, layer: nn.Module, listener: Listener) -> None:
        self.layer, self.listener = layer, listener
        self.watching = self.third = False
        self.owned = True
        self._parameter: weakref.ref[nn.Parameter] | None = None
        self._under_way: dict[int, list[Product | None]] = {}
        self._on_layer: list[Any] = []
        self._on_weight: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        # The copy of a watched layer brings one of its watcher along, which looks away: unless whom it works for is copied too.
        gone: dict[str, Any] = {"_parameter": None, "_under_way": {}, "_on_weight": [], "owned": False}
        return {**self.__dict__, **gone}

    def attach(self) -> None:
        """Be there when the layer runs: from before a compiler looks at it, which would not notice later."""
        if not self._on_layer:
            self._on_layer = [
                self.layer.register_forward_pre_hook(self.enter, with_kwargs=True),
                self.layer.register_forward_hook(self.leave, with_kwargs=True),
            ]
        parameter = parameter_of(self.layer)
        if self._parameter is None or self._parameter() is not parameter:
            self._let_go()
            self._parameter = weakref.ref(parameter)
        self._tie(parameter)

    def own(self) -> None:
        """This copy works for somebody, who was copied too."""
        self.owned = True
        if self._on_layer:
            self.attach()

    def detach(self) -> None:
        """Be gone."""
        self.stop()
        self._let_go()
        for handle in self._on_layer:
            handle.remove()
        self._on_layer = []

    def watch(self) -> None:
        """Tell of what is added from now on."""
        self.attach()
        self.watching, self.third = True, False
        self._under_way.clear()

    def stop(self) -> None:
        """Tell nothing for now."""
        self.watching = self.third = False
        self._under_way.clear()

    def _let_go(self) -> None:
        for handle in self._on_weight:
            handle.remove()
        self._on_weight, self._parameter = [], None

    def _tie(self, parameter: nn.Parameter) -> None:
        if not self._on_weight and parameter.requires_grad:
            own = weakref.ref(self)  # a weight outlives its watchers

            def adding(_: Tensor) -> None:
                if (recorder := own()) is not None:
                    recorder.adding()

            def added(_: Tensor) -> None:
                if (recorder := own()) is not None:
                    recorder.added()

            self._on_weight = [
                parameter.register_hook(unserializable_hook(adding)),
                parameter.register_post_accumulate_grad_hook(unserializable_hook(added)),
            ]

    # -- in the forward pass

    def _counts(self, x: Tensor | None) -> bool:
        """Whether a product of `x` that happens now may come to add to the weight's own `.grad`."""
        if not self.owned:
            self.listener.forget()
        if not (self.owned and self.watching and x is not None and torch.is_grad_enabled()) or _within_transform():
            return False
        parameter = parameter_of(self.layer)
        # Others may stand in for it for a call, as in torch.func.functional_call.
        if self._parameter is None or self._parameter() is not parameter or not parameter.requires_grad:
            return False
        self._tie(parameter)  # it may have been frozen so far
        return True

    # Compilers leave it to Python. The public name for that, torch.compiler.disable, would load one, 50 MB, for everybody.
    @_disable_dynamo
    def enter(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Gives the layer its input under another name, whose gradient is then of this product alone."""
        del layer
        x = _first(inputs, named)
        if x is None or not self._counts(x) or not x.requires_grad:
            return None
        alias = x.view_as(x)
        if (again := getattr(x, "made_again", None)) is not None:
            alias.made_again = again  # type: ignore[attr-defined]  # tensors take attributes
        return ((alias, *inputs[1:]), named) if inputs else (inputs, {**named, next(iter(named)): alias})

    @_disable_dynamo
    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """Waits for the gradients of a product."""
        x = _first(inputs, named)
        if x is None or not self._counts(x) or not (isinstance(output, Tensor) and output.requires_grad):
            return
        if _backward() < 0:
            self._under_way.clear()  # of backward passes that are over
        # dY is the gradient before a fused ReLU: nothing flows through outputs that it cut off.
        activation = getattr(layer, "activation", None)
        _refuse_kept_back(activation)
        cut = None if activation is None else (output <= 0).detach()
        again_made: MadeAgain | None = getattr(x, "made_again", None)
        source: Source = x.detach() if again_made is None else again_made
        lasting, derived = _is_result(x) if again_made is None else again_made.lasting, x.requires_grad
        last: list[Tensor] = []

        def backward(dy: Tensor) -> None:
            upstream = dy.detach() if cut is None else dy.detach().masked_fill(cut, 0.0)
            self._note((source if lasting else source.clone(), upstream))
            last[:] = [upstream] if derived and torch.is_grad_enabled() else []

        def again(dx: Tensor) -> None:
            if dx.requires_grad and last:
                upstream = last.pop()
                dx.register_hook(lambda u: self._note_second(u, upstream))

        output.register_hook(backward)
        if derived:
            x.register_hook(again)

    enter.only_watches = leave.only_watches = True  # type: ignore[attr-defined]  # functions take attributes; `densify_` asks for this one

    # -- in the backward pass

    def _note(self, product: Product | None) -> None:
        self._under_way.setdefault(_backward(), []).append(product)

    def _note_second(self, u: Tensor, upstream: Tensor) -> None:
        self._note((u.detach(), upstream))
        if u.requires_grad:
            u.register_hook(lambda _: self._note(None))

    def adding(self) -> None:
        """Its gradient of this backward pass is about to be added to `.grad` of the weight, or to be returned."""
        if self.owned and self.watching:
            self.listener.before()

    def added(self) -> None:
        """It was added."""
        if self.owned and self.watching:
            products = self._under_way.pop(_backward(), [])
            self.third |= None in products
            self.listener.added([product for product in products if product is not None])


def _refuse_kept_back(activation: str | None) -> None:
    """Raises InvalidInput where what went into a fused activation, and so its derivative, is not seen outside the layer."""
    if not read_off(activation):
        raise InvalidInput(
            f"a layer with activation={activation!r}, of whose weights a method wants the gradients where nothing is kept",
            "no activation in the layer, or ReLU",
            "Set layer.activation = None, and put the module that it is behind the layer while it is trained.",
        )


def _first(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    given = next(iter((*inputs, *named.values())), None)
    return given if isinstance(given, Tensor) else None


def _is_result(x: Tensor) -> bool:
    """Whether autograd has made `x`, and would notice a change; what a user has made may be written over after a backward pass."""
    owner = x._base if x._base is not None else x  # noqa: SLF001 - what a view is of has no other name
    return owner.grad_fn is not None


def _backward() -> int:
    """The number of the backward pass that is under way in this thread; -1 where none is."""
    return torch._C._current_graph_task_id()  # noqa: SLF001 - torch's own hooks on several gradients are told apart by it


def _within_transform() -> bool:
    """Whether torch.func transforms what is computed: gradients are then its own, and reach no `.grad`."""
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001 - has no other name
