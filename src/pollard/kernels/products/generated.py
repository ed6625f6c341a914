"""The three products by generated kernels: float32 and half precision on a CPU that they are generated for."""

from __future__ import annotations

from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.code.target import current
from pollard.kernels.products.operand import Operand, by_rows, name_of
from pollard.kernels.products.prepared import prepared
from pollard.kernels.products.product import Product
from pollard.kernels.products.task import Call, Task

# Of each kind of product, the operation that computes it; one sample has a forward product of its own.
KERNELS = {"forward": "gather", "input_grad": "scatter", "value_grad": "sddmm"}
ONE_SAMPLE = "matvec"


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

    operation: str = KERNELS[task.kind]
    variant: tuple[bool, ...] = ()
    if task.kind == "forward":
        operation = ONE_SAMPLE if len(tensors[0]) == 1 else operation
        variant = (len(tensors) > 2, task.relu)
    elif task.kind == "value_grad":
        variant = (matrices[0].features_first,)
    product = Product.of(operation, topology, matrices[-1], target, name_of(task.values))
    found = prepared(product, matrices, variant, lambda: ready(tensors))
    call: Call = (lambda *given: found(*ready(given))) if any(copied) else found
    if not task.rows:
        return call
    features = topology.shape[0 if task.kind == "forward" else 1]
    arrange = by_rows(target, len(tensors[0]), features, tensors[0].dtype)
    return call if arrange is None else lambda *given: arrange(call(*given))
