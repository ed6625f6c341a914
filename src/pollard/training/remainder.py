"""What is left of a gradient since it was last added to: all of it, what clipping or unscaling left, or nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.training import processes

# Entries of a gradient that are looked at again.
SAMPLE = 4096


class Remainder:
    """Remembers some entries of a gradient, to tell what became of it: a common factor, whatever was done in its place.

    >>> remainder, gradient = Remainder(), torch.tensor([3.0, 0.0, -4.0])
    >>> remainder.note(gradient)
    >>> remainder.of(gradient), remainder.of(gradient.div_(8)), remainder.of(gradient.zero_()), remainder.of(None)
    (1.0, 0.125, 0.0, 0.0)
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """There is no gradient yet."""
        self._version: tuple[int, int] | None = None
        self._held = torch.empty(0, dtype=torch.float32, device="cpu")
        self._zero = True

    def note(self, gradient: Tensor | None) -> None:
        """This is what there is of `gradient` now."""
        self.forget()
        if gradient is None:
            return
        self._version, self._held = _version(gradient), _sampled(gradient).clone()
        self._zero = not (self._held.any() or gradient.any())

    def of(self, gradient: Tensor | None, *, together: bool = False) -> float:
        """The factor from what was noted to what `gradient` is now; 1 where nothing was noted.

        A gradient that was zero already says nothing. Where entries differ, the factor is that of most: few are cut off.
        Where several processes may have averaged their gradients since, only zero is told from the rest, unless they ask
        `together`.
        """
        if gradient is None:
            return 0.0
        several = processes.count() > 1
        if several and together:
            return self._factor(gradient, processes.mean(self._noted(gradient)))
        if self._version is None or self._version == _version(gradient):
            return 1.0
        if not self._zero and not bool(gradient.any()):
            return 0.0
        return 1.0 if several else self._factor(gradient, self._held)

    def _noted(self, gradient: Tensor) -> Tensor:
        now = _sampled(gradient)
        return torch.zeros_like(now) if self._version is None else self._held.clone()

    @staticmethod
    def _factor(gradient: Tensor, held: Tensor) -> float:
        ratios = (_sampled(gradient) / held)[(held != 0) & held.isfinite()]
        return float(ratios.median()) if len(ratios) else 1.0


def _sampled(gradient: Tensor) -> Tensor:
    flat = gradient.reshape(-1)
    return flat[:: max(1, -(-len(flat) // SAMPLE))]


def _version(gradient: Tensor) -> tuple[int, int]:
    """Which memory it is, and how often it has been written to."""
    return gradient.data_ptr(), gradient._version  # noqa: SLF001 - torch's own count of writes has no other name
