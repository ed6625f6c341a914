"""Dense operands, as far as kernels are made for them, and how they are turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pollard.kernels.products.cuda.launch import Launch

FEW = 16  # samples below which a dense operand is read as it lies
SIDE = 128  # of the square tiles in which it is turned


class Dense(NamedTuple):
    """What all `(batch, features)` tensors have in common that one prepared product takes."""

    batch: int
    features: int
    strides: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """That of `tensor`."""
        batch, features = tensor.shape
        by_sample, by_feature = tensor.stride()
        return cls(batch, features, (by_sample, by_feature), tensor.dtype, tensor.device)

    @property
    def side_by_side(self) -> Dense:
        """The same with the samples of a feature side by side; few samples are left as they are."""
        if self.strides[0] == 1 or self.batch < FEW:
            return self
        return self._replace(strides=(1, self.batch))


def turning(x: Dense) -> Callable[[Tensor], Tensor]:
    """What copies such a tensor so that it lies `side_by_side`; itself where it does."""
    turned = x.side_by_side
    if turned is x:
        return lambda tensor: tensor
    launch = Launch("turn", x.batch, x.features, *x.strides, SIDE=SIDE)
    grid, sizes = (-(-x.features // SIDE), -(-x.batch // SIDE), 1), (x.batch, x.features)

    def turn(tensor: Tensor) -> Tensor:
        made = tensor.new_empty_strided(sizes, turned.strides)
        launch(grid, (tensor, made))
        return made

    return turn


__all__ = ["Dense", "turning"]
