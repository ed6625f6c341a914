"""Values in the order in which a kernel walks them, where that is not the order of their topology."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.products.workspace import workspace


def ordering(spec: KernelSpec, permutation: Tensor, threads: int) -> Callable[[Tensor], Tensor]:
    """What lays values out by `permutation`, in memory of this thread until its next call.

    To take each from its place for every panel would cost more than to move all once.
    """
    count, bounds = len(permutation), equal_runs(len(permutation), threads)
    launch = Launch(spec, threads, threads, permutation=permutation, bounds=bounds, PASSES=1).at(threads)

    def arrange(values: Tensor) -> Tensor:
        arranged = workspace("values", count)
        launch(values.data_ptr(), arranged.data_ptr())
        return arranged

    return arrange


__all__ = ["ordering"]
