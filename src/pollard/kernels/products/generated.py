"""The three products by generated kernels: float32 and half precision on a CPU that they are generated for."""

from __future__ import annotations

from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code.emit.amx import ROWS
from pollard.kernels.code.emit.n_of_m import serves
from pollard.kernels.code.target import Target, current, without_tiles
from pollard.kernels.products.operand import Operand, name_of
from pollard.kernels.products.prepared import prepared
from pollard.kernels.products.product import Product, in_pairs
from pollard.kernels.products.task import Call, Task

WORTH = 1 << 15  # kept weights: what they gain by it takes as long as two copies of a few samples
# Densities from which on single weights of few samples are told by bits: the time for them depends on columns and samples, not on what is kept. In
# float32 that of one sample, and what each other adds; in pairs of bfloat16 that of up to `FEW`, and of more.
MUCH, MORE, MUCH_IN_PAIRS, FEW = 0.2, 0.1, (0.125, 0.16), 4
FEW_ROWS = 4
HELD = 12_288  # numbers of a few samples of float32 that stay in the nearest cache, while W comes by
KERNELS = {"forward": "gather", "input_grad": "scatter", "value_grad": "sddmm"}


def operation(kind: str, topology: Topology, operand: Operand, target: Target, values: str) -> str:
    """The operation that computes a kind of product: one sample and few have forward products of their own, and bfloat16 in sixteen rows those in tiles.

    operand: the first of the product's, the values being of that dtype. None of it is measured, so that bits depend on no measurement.

    >>> from pollard.kernels.code.target import TARGETS
    >>> topology = Topology.random((8, 8), 0.5, "2:4")
    >>> operation("forward", topology, Operand(1, 8, True, 1, "float32"), TARGETS["avx2"], "float32")
    'n_of_m'
    """
    batch, pattern = operand.batch, topology.pattern
    if batch > 1 and _in_tiles(kind, pattern, target, (operand.dtype, values)):
        return f"amx_{KERNELS[kind]}"
    if kind != "forward" or batch > target.lanes // 2:
        return KERNELS[kind]
    if batch == 1 and pattern.m and serves(target, pattern.n, pattern.m):
        return "n_of_m"
    if _by_bits(topology, operand, target, values):
        return "bitmap"
    # Rows of a grain that fill a vector need no others beside them; a row alone is summed in its lanes.
    return "skinny" if batch > 1 or 1 < pattern.rows <= FEW_ROWS else "matvec"


def _in_tiles(kind: str, pattern: Pattern, target: Target, dtypes: tuple[str, str]) -> bool:
    if pattern.rows != ROWS or target.isa != "avx512" or without_tiles():
        return False
    # A gradient of values may be of either dtype: its sums are float32. Values that are read would have to be rounded.
    return dtypes[0] == "bfloat16" and (dtypes[1] == "bfloat16" or kind == "value_grad")


def _by_bits(topology: Topology, operand: Operand, target: Target, values: str) -> bool:
    """Whether single weights of a few samples are so many that a bit for each column is sooner read than an index for each weight."""
    if target.isa != "avx512" or topology.pattern.size > 1:
        return False
    if in_pairs(operand.dtype, values):
        return topology.density >= MUCH_IN_PAIRS[operand.batch > FEW]
    held = operand.batch == 1 or (operand.batch <= FEW and operand.batch * topology.width <= HELD)
    return held and topology.density >= MUCH + MORE * (operand.batch - 1)


def as_read(kind: str, topology: Topology, operand: Operand, target: Target, values: str) -> Operand:
    """The operand as its kernel reads it: few samples in half precision are widened before, where enough weights are kept.

    A unit of half precision is twice as many samples as one of float32, for twice the work; and a number is read more often than it is widened.
    """
    few = operand.batch <= target.lanes and topology.nnz >= WORTH
    if few and operation(kind, topology, operand, target, values) in KERNELS.values():
        return operand._replace(dtype="float32")
    return operand


def call(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> Call:
    """The call for tensors of such shapes and strides; which kernel it is is found by running it on these, once.

    Raises KernelError where a kernel does not compile.
    """
    target = current()
    assert target is not None, "chosen for a CPU without kernels"
    operand = Operand.of(tensors[0])
    if as_read(task.kind, topology, operand, target, name_of(task.values)) == operand:
        return _call(task, topology, tensors, target)
    found, dtype = _call(task, topology, _widened(tensors), target), tensors[0].dtype
    if task.kind == "value_grad":
        return lambda *given: found(*_widened(given))
    return lambda *given: found(*_widened(given)).to(dtype)


def _widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() if each.dim() == 2 else each for each in tensors)


def _call(task: Task, topology: Topology, tensors: tuple[Tensor, ...], target: Target) -> Call:
    matrices = tuple(Operand.of(each) for each in tensors if each.dim() == 2)
    copied = [*(each.copied for each in matrices), *(not each.is_contiguous() for each in tensors[len(matrices) :])]

    def ready(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.contiguous() if copy else each for each, copy in zip(given, copied, strict=True))

    variants = {
        "forward": (len(tensors) > 2, task.activation or ""),
        "value_grad": (matrices[0].features_first,),
        "input_grad": (),
    }
    values = name_of(task.values)
    wanted = operation(task.kind, topology, matrices[0], target, values)
    product = Product.of(wanted, topology, matrices[-1], target, values, rows=task.rows)
    found = prepared(product, matrices, variants[task.kind], lambda: ready(tensors))
    return (lambda *given: found(*ready(given))) if any(copied) else found
