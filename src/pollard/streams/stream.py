"""The numbers of one parameter, by their places in it."""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from pollard.errors import InvalidInput
from pollard.kernels.code.fallback import attempt
from pollard.streams import generated, reference
from pollard.streams.law import Law

WORDS = 1 << 32  # of 32 bits
SEEDS = (-(1 << 63), 1 << 64)  # what torch.manual_seed takes
LARGEST = torch.finfo(torch.float32).max
PLAIN = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True)
class Stream:
    """The random numbers of a parameter: each is a function of (seed, layer, draw, row, column), and of nothing else.

    seed: of all parameters, what `torch.manual_seed` takes; below 0 it is the same as 2**64 more. layer: which parameter.
    draw: how many times it was drawn anew. Any block of rows is made at will, with the same bits on every machine and any number of threads.
    The generator is Philox4x32-10 (Salmon et al., SC 2011): its key is the seed, its counter (c, row, layer, draw), and
    column 64 t + 16 k + l has word k of the counter c = 16 t + l.

    Raises InvalidInput where the seed has more than 64 bits, or one of the others more than 32.

    >>> stream = Stream(seed=0, layer=3)
    >>> whole = stream.normal(0, 100, 10)
    >>> torch.equal(stream.normal(40, 60, 10), whole[40:60])
    True
    >>> torch.equal(stream.normal_at(torch.tensor([5, 99]), torch.tensor([2, 0])), whole[[5, 99], [2, 0]])
    True
    """

    seed: int
    layer: int
    draw: int = 0

    def __post_init__(self) -> None:
        _check("a seed", self.seed, *SEEDS)
        _check("a layer", self.layer, 0, WORDS)
        _check("a draw", self.draw, 0, WORDS)

    def uniform(
        self, first: int, last: int, columns: int, low: float = 0.0, high: float = 1.0, *, out: Tensor | None = None
    ) -> Tensor:
        """Rows `first` to `last - 1` of a matrix of U(low, high), float32 `(last - first, columns)`.

        ``u * (high - low) + low``, where u is a multiple of 2**-24 from 0 to below 1; rounded, it may be `high`.
        `out`, of that shape and dtype, on any device, takes the numbers; its rows may be part of longer ones.
        Raises InvalidInput for rows or columns that 32 bits cannot count, bounds that are not finite or not in order, and
        an `out` that does not fit.

        >>> Stream(0, 0).uniform(0, 2, 3, -1.0, 1.0).shape
        torch.Size([2, 3])
        """
        return _filled(self._uniform(low, high), first, last, columns, out)

    def normal(
        self, first: int, last: int, columns: int, mean: float = 0.0, std: float = 1.0, *, out: Tensor | None = None
    ) -> Tensor:
        """Rows `first` to `last - 1` of a matrix of N(mean, std**2), float32 `(last - first, columns)`; otherwise as `uniform`.

        ``z * std + mean``, where z, by Box and Muller (1958), reaches 6.66 to both sides.
        """
        return _filled(self._normal(mean, std), first, last, columns, out)

    def uniform_at(self, rows: Tensor, columns: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """What `uniform` has at these rows and columns, int64 `(n,)`: float32 `(n,)`, in memory of that size.

        Raises InvalidInput where they are not int64, of one length and device, or where 32 bits do not hold them.
        """
        return _at(self._uniform(low, high), rows, columns)

    def normal_at(self, rows: Tensor, columns: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
        """What `normal` has at these rows and columns, int64 `(n,)`: float32 `(n,)`; otherwise as `uniform_at`."""
        return _at(self._normal(mean, std), rows, columns)

    def _uniform(self, low: float, high: float) -> Law:
        if not (abs(low) <= LARGEST and abs(high) <= LARGEST and 0.0 <= high - low <= LARGEST):
            raise InvalidInput(f"numbers from {low} to {high}", "finite bounds in order", "Give low <= high.")
        return self._law("uniform", high - low, low)

    def _normal(self, mean: float, std: float) -> Law:
        if not (abs(mean) <= LARGEST and 0.0 <= std <= LARGEST):
            raise InvalidInput(f"mean {mean}, std {std}", "finite numbers, std at least 0", "Give std >= 0.")
        return self._law("normal", std, mean)

    def _law(self, kind: Literal["uniform", "normal"], scale: float, start: float) -> Law:
        # Python's own integers, which products of tensors take; others were welcome.
        seed, layer, draw = map(operator.index, (self.seed, self.layer, self.draw))
        return Law(seed, layer, draw, kind, _single(scale), _single(start))


@torch.no_grad()
def _filled(law: Law, first: int, last: int, columns: int, out: Tensor | None) -> Tensor:
    _check("a first row", first, 0, WORDS + 1)
    _check("a row to end before", last, first, WORDS + 1)
    _check("a number of columns", columns, 0, WORDS + 1)
    shape = (last - first, columns)
    if out is None:
        return _written(law, first, torch.empty(shape, dtype=torch.float32, device="cpu"))
    if out.shape != shape or out.dtype != torch.float32:
        raise InvalidInput(
            f"out of {tuple(out.shape)}, {out.dtype}", f"{shape}, torch.float32", "Give one for these rows, or none."
        )
    return _written(law, first, out)


def _written(law: Law, first: int, out: Tensor) -> Tensor:
    if not out.numel():
        return out
    if type(out) not in PLAIN or out.device.type != "cpu":
        reference.fill(law, first, out)
    elif out.stride(1) != 1 and out.shape[1] > 1:
        out.copy_(_written(law, first, torch.empty(out.shape, dtype=torch.float32, device="cpu")))
    elif attempt(partial(generated.fill, law, first, out)) is None:
        reference.fill(law, first, out)
    elif not out.is_inference():
        increment_version(out)
    return out


@torch.no_grad()
def _at(law: Law, rows: Tensor, columns: Tensor) -> Tensor:
    told = [(tuple(places.shape), places.dtype, places.device) for places in (rows, columns)]
    if told[0] != told[1] or rows.dim() != 1 or rows.dtype != torch.int64:
        raise InvalidInput(
            f"rows of {told[0]} and columns of {told[1]}", "int64 (n,) on one device", "Give one of each a position."
        )
    for name, places in (("a row", rows), ("a column", columns)):
        if len(places) and places.device.type != "meta":
            least, most = places.aminmax()
            _check(name, int(least), 0, WORDS)
            _check(name, int(most), 0, WORDS)
    made = None
    if type(rows) is type(columns) is Tensor and rows.device.type == "cpu" and len(rows):
        made = attempt(partial(generated.at, law, rows.contiguous(), columns.contiguous()))
    return reference.at(law, rows, columns) if made is None else made


def _check(name: str, value: int, least: int, end: int) -> None:
    """Raise InvalidInput unless `value` is an integer from `least` to below `end`."""
    try:
        fits = least <= operator.index(value) < end
    except TypeError:
        fits = False
    if not fits:
        raise InvalidInput(f"{name} of {value!r}", f"an integer from {least} to {end - 1}", "Give one in this range.")


def _single(number: float) -> float:
    """`number`, rounded to float32."""
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    return float(rounded)
