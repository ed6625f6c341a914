"""What a convolution looks at: the sizes that torch's own have, and along each axis which place meets which tap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from pollard.errors import InvalidInput

Pair = tuple[int, int]


class Window(NamedTuple):
    """Kernel, stride and dilation of a convolution over two axes, and the zeros before and after each.

    >>> Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))).extents((32, 32))
    (32, 32)
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]

    @property
    def taps(self) -> int:
        """Weights of one pair of channels."""
        return self.kernel[0] * self.kernel[1]

    def extents(self, sizes: Pair) -> Pair:
        """Rows and columns of the result for images of `sizes`; raises InvalidInput where the kernel does not fit in."""
        found = []
        for size, kernel, stride, dilation, padding in zip(sizes, *self, strict=True):
            found.append((size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1)
        if min(found) < 1:
            raise InvalidInput(
                f"images of {sizes[0]} x {sizes[1]} for a kernel of {self.kernel[0]} x {self.kernel[1]}, "
                f"dilation {self.dilation}, padding {self.padding}",
                "images that are at least as large as the kernel, padding included",
                "Pad the images, or leave out a layer that makes them smaller.",
            )
        return found[0], found[1]

    def forward(self, sizes: Pair) -> tuple[Axis, Axis]:
        """Both axes of ``y[p] = sum over t of w[t] x[stride p + dilation t - before]``."""
        made = [
            Axis(
                size=size,
                shift=padding[0],
                extent=(out - 1) * stride + dilation * (kernel - 1) + 1,
                step=stride,
                taps=tuple(dilation * tap for tap in range(kernel)),
                phases=(0,) * kernel,
                counts=(out,),
            )
            for size, out, kernel, stride, dilation, padding in zip(sizes, self.extents(sizes), *self, strict=True)
        ]
        return made[0], made[1]

    def backward(self, sizes: Pair) -> tuple[Axis, Axis]:
        """Both axes of the gradient in x: ``dx[i] = sum over t of w[t] dy[(i + before - dilation t) / stride]``, where that is whole."""
        made = [
            _backward(size, out, (kernel, stride, dilation), padding[0])
            for size, out, kernel, stride, dilation, padding in zip(sizes, self.extents(sizes), *self, strict=True)
        ]
        return made[0], made[1]


@dataclass(frozen=True, slots=True)
class Axis:
    """How places of a result meet places of a source along one axis, which lies in a field at `shift`, zeros around it.

    size: of the source. extent: of the field. Place i of a phase of the result, which is place ``phase + len(counts) * i`` of all,
    reads tap t at ``step * i + taps[t]`` of the field, if it is of that phase: ``phases[t]``. counts: places of each phase.
    """

    size: int
    shift: int
    extent: int
    step: int
    taps: tuple[int, ...]
    phases: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def places(self) -> int:
        """Of the result."""
        return sum(self.counts)

    def filled(self, piece: int) -> Axis:
        """Of one phase, with as many places as whole pieces take, all of the source in the field."""
        places = -(-self.places // piece) * piece
        extent = max(self.shift + self.size, (places - 1) * self.step + max(self.taps) + 1)
        return replace(self, extent=extent, counts=(places,))


def still(size: int) -> Axis:
    """An axis whose places are read as they are."""
    return Axis(size, 0, size, 1, (0,), (0,), (size,))


def _backward(size: int, out: int, window: tuple[int, int, int], before: int) -> Axis:
    kernel, stride, dilation = window
    phases = [(dilation * tap - before) % stride for tap in range(kernel)]
    reads = [(phase + before - dilation * tap) // stride for tap, phase in enumerate(phases)]
    shift = max(0, -min(reads))
    counts = tuple(len(range(phase, size, stride)) for phase in range(stride))
    taps = tuple(read + shift for read in reads)
    return Axis(
        size=out,
        shift=shift,
        extent=max(shift + out, max(counts) + max(taps)),
        step=1,
        taps=taps,
        phases=tuple(phases),
        counts=counts,
    )


__all__ = ["Axis", "Window", "still"]
