"""What a convolution looks at: the sizes that torch's own have, and along each axis which place meets which tap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from pollard.errors import InvalidInput

Pair = tuple[int, int]
Sizes = tuple[int, ...]


class Window(NamedTuple):
    """Kernel, stride and dilation of a convolution along each axis, and the zeros before and after it; kernels of ours know two axes.

    The weight is a matrix of output channels by input channels x taps. added: of a transposed convolution, whose weight is a matrix of
    output channels x taps by input channels, by how much its result is larger than what takes part in it; its zeros are alike on both sides.

    >>> Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))).extents((32, 32))
    (32, 32)
    """

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    padding: tuple[Pair, ...]
    added: Sizes | None = None

    @property
    def taps(self) -> int:
        """Weights of one pair of channels."""
        return prod(self.kernel)

    @property
    def row_taps(self) -> int:
        """Rows of the matrix that an output channel has."""
        return 1 if self.added is None else self.taps

    @property
    def column_taps(self) -> int:
        """Columns of the matrix that an input channel has."""
        return self.taps // self.row_taps

    @property
    def planar(self) -> bool:
        """Whether kernels of ours know such a window: of two axes, and not transposed."""
        return len(self.kernel) == 2 and self.added is None

    def channels(self, shape: Pair) -> Pair:
        """Those of the images and of the result, for a matrix of that shape."""
        return shape[1] // self.column_taps, shape[0] // self.row_taps

    def extents(self, sizes: Sizes) -> Sizes:
        """Those of the result for images of `sizes`; raises InvalidInput where the kernel does not fit in."""
        axes = list(zip(sizes, self.kernel, self.stride, self.dilation, map(sum, self.padding), strict=True))
        if self.added is None:
            found = [
                (size + zeros - dilation * (kernel - 1) - 1) // stride + 1
                for size, kernel, stride, dilation, zeros in axes
            ]
        else:
            found = [
                (size - 1) * stride - zeros + dilation * (kernel - 1) + 1 + more
                for (size, kernel, stride, dilation, zeros), more in zip(axes, self.added, strict=True)
            ]
        if min(found) < 1:
            raise InvalidInput(
                f"images of {' x '.join(map(str, sizes))} for a kernel of {' x '.join(map(str, self.kernel))}, "
                f"dilation {self.dilation}, padding {self.padding}",
                "images that are at least as large as the kernel, padding included",
                "Pad the images, or leave out a layer that makes them smaller.",
            )
        return tuple(found)

    def forward(self, sizes: Sizes) -> tuple[Axis, Axis]:
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
            for size, out, kernel, stride, dilation, padding in zip(sizes, self.extents(sizes), *self[:4], strict=True)
        ]
        return made[0], made[1]

    def backward(self, sizes: Sizes) -> tuple[Axis, Axis]:
        """Both axes of the gradient in x: ``dx[i] = sum over t of w[t] dy[(i + before - dilation t) / stride]``, where that is whole."""
        made = [
            _backward(size, out, (kernel, stride, dilation), padding[0])
            for size, out, kernel, stride, dilation, padding in zip(sizes, self.extents(sizes), *self[:4], strict=True)
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


__all__ = ["Axis", "Sizes", "Window", "still"]
