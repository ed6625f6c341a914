"""Whether two networks lie in one basin: the error along the straight line between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pollard.copies import copied
from pollard.errors import InvalidInput
from pollard.nn.surgery import sparse_layers

POINTS = 11


@dataclass(frozen=True, slots=True)
class Line:
    """The errors of the networks `(1 - alpha) first + alpha second`, alpha in equal steps from 0 to 1."""

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """`max over alpha of the error, less the mean of both ends`: 0 where nothing on the way is worse than they are.

        Frankle et al. call it the instability of what both were trained from, where their training differs in noise alone,
        and networks with less than 0.02 of it linearly connected.

        >>> Line((0.0, 0.5, 1.0), (0.25, 0.75, 0.5)).barrier
        0.375
        """
        return max(self.errors) - mean((self.errors[0], self.errors[-1]))


@torch.no_grad()
def straight_line(
    first: nn.Module,
    second: nn.Module,
    error: Callable[[nn.Module], float],
    *,
    points: int = POINTS,
    batches: Iterable[Any] | None = None,
) -> Line:
    """The error of every network on the straight line from `first` to `second`, at `points` of it, both ends included.

    ::

        weights at alpha = (1 - alpha) * first + alpha * second        of what both keep: the others are zero in both

    error: of a network, in evaluation mode, as a fraction or a loss. Both networks must keep the same weights, so that the line
    is one of networks as sparse. One copy of `first` goes along it, so memory is that of three sparse networks; both stay as they are.

    Norms that hold running statistics have none for the weights in between, and means of those of both ends would be wrong:
    `batches` of inputs, or of pairs whose first is the input, are passed at every point, ends included, and statistics are
    the mean over them, each batch counted alike. All else is then as in evaluation. So the ends may differ a little from `error`
    of the networks themselves.

    Raises InvalidInput where the networks differ in more than the numbers of their parameters, statistics of norms apart;
    for fewer than 3 points; and for norms without `batches`.
    Source: Frankle, Dziugaite, Roy, Carbin, Linear mode connectivity and the lottery ticket hypothesis, ICML 2020, section 2.

    >>> import copy
    >>> from pollard.nn import SparseLinear
    >>> first = nn.Sequential(SparseLinear.random(8, 4, density=0.5))
    >>> second = copy.deepcopy(first)
    >>> _ = second[0].values.data.neg_()
    >>> x = torch.randn(16, 8)
    >>> y = first(x).argmax(1)
    >>> straight_line(first, second, lambda model: float((model(x).argmax(1) != y).float().mean()), points=3).alphas
    (0.0, 0.5, 1.0)
    """
    if points < 3:
        raise InvalidInput(f"{points} points", "at least 3: both ends, and one between them", "Frankle et al. took 30.")
    _require_alike(first, second)
    moving = copied(first, "to stand between two networks")
    norms = [module for module in moving.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    if norms and batches is None:
        raise InvalidInput(
            f"{len(norms)} norms with running statistics, which no network between the two has",
            "batches to take them from",
            "Pass batches=, some hundreds of training examples or more.",
        )
    seen = list(batches) if norms and isinstance(batches, Iterator) else batches
    alphas = tuple(step / (points - 1) for step in range(points))
    errors = []
    for alpha in alphas:
        _place(moving, first, second, alpha)
        moving.eval()
        if norms:
            _renew(moving, norms, seen or ())
        errors.append(float(error(moving)))
    return Line(alphas, tuple(errors))


def _place(moving: nn.Module, first: nn.Module, second: nn.Module, alpha: float) -> None:
    """Bring the parameters of `moving` to alpha of the way, the ends exactly."""
    for own, one, other in zip(moving.parameters(), first.parameters(), second.parameters(), strict=True):
        own.copy_(one if alpha == 0 else other if alpha == 1 else torch.lerp(one, other, alpha))


def _renew(moving: nn.Module, norms: list[_NormBase], batches: Iterable[Any]) -> None:
    """Statistics of the norms anew: the mean over `batches`."""
    with _averaging(norms):
        passed = 0
        for batch in batches:
            moving(batch if isinstance(batch, Tensor) else batch[0])
            passed += 1
    if not passed:
        raise InvalidInput(
            "batches without one", "at least one batch", "Pass a list, or a loader of training examples."
        )


@contextmanager
def _averaging(norms: list[_NormBase]) -> Iterator[None]:
    """Norms alone in training, so that they note what they are given, each batch counted alike."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _require_alike(first: nn.Module, second: nn.Module) -> None:
    one, other = _form(first), _form(second)
    if one != other:
        raise InvalidInput(
            f"a network of parameters {_told(one, other)}, and one of {_told(other, one)}",
            "two networks of the same parameters",
            "Train both from one network.",
        )
    layers, others = sparse_layers(first), sparse_layers(second)
    for name, layer in layers.items():
        if not layer.topology.same_as(others[name].topology):
            raise InvalidInput(
                f"two networks that keep other weights in layer {name!r}",
                "the same topologies: a line between others is one of networks less sparse",
                "Train both from one plan, by a method whose topology stays.",
            )
    norms = {f"{name}.".lstrip(".") for name, module in first.named_modules() if isinstance(module, _NormBase)}
    theirs = dict(second.named_buffers())
    for name, buffer in first.named_buffers():
        of_norm = f"{name.rpartition('.')[0]}.".lstrip(".") in norms
        if not of_norm and not torch.equal(buffer, theirs[name]):
            raise InvalidInput(
                f"two networks with other values in buffer {name!r}, of which there is no way between",
                "buffers that agree, but for the statistics of norms",
                "Set it to the same values in both.",
            )


def _form(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    kinds = {name: type(layer).__name__ for name, layer in sparse_layers(model).items()}
    found = {
        name: (kinds.get(name.rpartition(".")[0], ""), tuple(value.shape)) for name, value in model.named_parameters()
    }
    return found | {name: ("buffer", tuple(value.shape)) for name, value in model.named_buffers()}


def _told(form: dict[str, Any], other: dict[str, Any]) -> str:
    """The first entry in which a form differs from the other."""
    return next((f"{name!r} {entry[1]}" for name, entry in form.items() if other.get(name) != entry), "no more")


__all__ = ["Line", "straight_line"]
