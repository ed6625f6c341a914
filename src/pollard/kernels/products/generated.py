"""The three products by generated kernels: float32 and half precision on a CPU that they are generated for."""

from __future__ import annotations

from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code.emit.n_of_m import serves
from pollard.kernels.code.target import Target, current
from pollard.kernels.products.operand import Operand, by_rows, name_of
from pollard.kernels.products.prepared import prepared
from pollard.kernels.products.product import Product
from pollard.kernels.products.task import Call, Task

KERNELS = {"forward": "gather", "input_grad": "scatter", "value_grad": "sddmm"}


def operation(kind: str, pattern: Pattern, batch: int, target: Target) -> str:
    """The operation that computes a kind of product: one sample has forward products of its own.

    >>> from pollard.kernels.code.target import TARGETS
    >>> operation("forward", Pattern.parse("2:4"), 1, TARGETS["avx2"])
    'n_of_m'
    """
    if kind != "forward" or batch > 1:
        return KERNELS[kind]
    return "n_of_m" if pattern.m and serves(target, pattern.n, pattern.m) else "matvec"


def call(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> Call:
    """The call for tensors of such shapes and strides; which kernel it is is found by running it on these, once.

    Raises KernelError where a kernel does not compile.
    """
    target = current()
    assert target is not None, "chosen for a CPU without kernels"
    matrices = tuple(Operand.of(each) for each in tensors if each.dim() == 2)
    copied = [*(each.copied for each in matrices), *(not each.is_contiguous() for each in tensors[len(matrices) :])]

    def ready(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.contiguous() if copy else each for each, copy in zip(given, copied, strict=True))

    variants = {
        "forward": (len(tensors) > 2, task.activation or ""),
        "value_grad": (matrices[0].features_first,),
        "input_grad": (),
    }
    wanted = operation(task.kind, topology.pattern, len(tensors[0]), target)
    product = Product.of(wanted, topology, matrices[-1], target, name_of(task.values))
    found = prepared(product, matrices, variants[task.kind], lambda: ready(tensors))
    run: Call = (lambda *given: found(*ready(given))) if any(copied) else found
    if not task.rows:
        return run
    features = topology.shape[0 if task.kind == "forward" else 1]
    arrange = by_rows(target, len(tensors[0]), features, tensors[0].dtype)
    return run if arrange is None else lambda *given: arrange(run(*given))
