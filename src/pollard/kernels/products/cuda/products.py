"""The three products by Triton's compiler and torch's dense ones, on CUDA: float32 and half precision, sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from pollard.errors import KernelError, PollardError
from pollard.formats.topology import Topology
from pollard.kernels.products.cuda import grains, panels
from pollard.kernels.products.cuda.dense import Dense, turning
from pollard.kernels.products.cuda.launch import on, version
from pollard.kernels.products.cuda.rows import columns_on, rows_on
from pollard.kernels.products.task import HALVES, Call, Task

DTYPES = (torch.float32, *HALVES)
# On an H200: reads at 5 to 9 TB/s, mostly of L2, against 730, 410 and 50 TFLOP/s; a panel written and read at 3 TB/s.
READ: dict[torch.dtype | str, int] = {torch.bfloat16: 150, torch.float16: 150, "tf32": 150, torch.float32: 10}
FILL: dict[torch.dtype | str, int] = {torch.bfloat16: 600, torch.float16: 600, "tf32": 800, torch.float32: 90}
CAPABILITY = (8, 0)  # from here on matrix units multiply bfloat16


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these products do not serve a device and a dtype; None where they do."""
    if device.type != "cuda":
        return "Triton's kernels run on CUDA"
    if dtype not in DTYPES:
        return f"no kernel computes in {dtype}"
    return _unfit(device.index)


@cache
def _unfit(index: int | None) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip:
        return "not tried on ROCm"
    found = torch.cuda.get_device_capability(index)
    needed = "{}.{}".format(*CAPABILITY)
    return None if found >= CAPABILITY else "compute capability {}.{}, ".format(*found) + f"{needed} is needed"


def call(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> Call:
    """The call for tensors of such shapes and strides. Raises KernelError where a kernel does not compile."""
    left, right = tensors[:2]
    dense = Dense.of(left)
    if task.kind == "value_grad":
        make = partial(_value_grad, task, topology, dense, Dense.of(right))
    else:
        make = partial(_dense, task, topology, dense, bias=len(tensors) > 2)
    # By what the user may change between calls.
    known: dict[bool, Call] = {}

    def product(*given: Tensor) -> Tensor:
        allowed = _in_tf32(dense.dtype)
        run = known.get(allowed) or known.setdefault(allowed, make())
        with on(dense.device):
            return run(*given)

    with _told(topology):
        product(*tensors)
    return product


@contextmanager
def _told(topology: Topology) -> Iterator[None]:
    """Whatever goes wrong with a kernel in there is a KernelError."""
    try:
        yield
    except (torch.OutOfMemoryError, PollardError):
        raise
    except Exception as error:  # Triton has no class of its own for all that can go wrong in its passes
        raise KernelError(
            f"Triton {version()} on a product with {topology.pattern}: {type(error).__name__}: {error}",
            "a kernel",
            "Plain torch multiplies instead. Another version of triton may help.",
        ) from error


def _in_tf32(dtype: torch.dtype) -> bool:
    return dtype is torch.float32 and grains.tf32()


def _dense(task: Task, topology: Topology, left: Dense, *, bias: bool) -> Call:
    batch, dtype = left.batch, left.dtype
    rows = (rows_on if task.kind == "forward" else columns_on)(topology, left.device)
    # No view, so that it may be written to.
    sizes, strides = (batch, rows.features), (rows.features, 1) if task.rows else (1, batch)
    if by_panels(task, topology, batch, dtype):
        multiply = panels.multiply(left, rows, activation=task.activation)
    else:
        tile = grains.gather_tile(rows.outs, rows.ins, batch, dtype, permuted=rows.entries is not None)
        y = left._replace(features=rows.features, strides=strides)
        multiply = grains.gather(left, y, rows, tile, bias=bias, activation=task.activation)

    def run(left: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        y = left.new_empty_strided(sizes, strides)
        multiply(left, values.contiguous(), bias if bias is None else bias.contiguous(), y)
        return y

    return run


def _value_grad(task: Task, topology: Topology, grad: Dense, x: Dense) -> Call:
    batch, dtype, rows = grad.batch, grad.dtype, rows_on(topology, grad.device)
    if by_panels(task, topology, batch, dtype):
        multiply = panels.sample(rows, task.values)
    else:
        multiply = grains.sample(grad, x, rows, grains.sample_tile(rows.outs, batch, dtype))
    size, values = (topology.nnz,), task.values

    def run(grad: Tensor, x: Tensor) -> Tensor:
        found = grad.new_empty(size, dtype=values)
        multiply(grad, x, found)
        return found

    return run


def ordered(topology: Topology, grad: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What turns gradients such as `grad` before both of their products; None where they lie right, or one product goes by panels.

    Raises KernelError as `call` does.
    """
    dense = Dense.of(grad)
    tasks = Task("input_grad", dense.dtype), Task("value_grad", dense.dtype)
    if dense.side_by_side is dense or any(by_panels(each, topology, dense.batch, dense.dtype) for each in tasks):
        return None
    with _told(topology):
        turn = turning(dense)

        def turned(grad: Tensor) -> Tensor:
            with on(dense.device):
                return turn(grad)

        turned(grad)
        return turned


def by_panels(task: Task, topology: Topology, batch: int, dtype: torch.dtype) -> bool:
    """Whether a product goes by panels: by a rule, not by time, as the two ways add in other orders.

    Grain by grain a number is read for as many products as the grain has weights of it; in the time of such a read, panels multiply
    `READ` numbers, and to fill a panel takes them as long as `FILL` samples more.
    """
    key = "tf32" if _in_tf32(dtype) else dtype
    reused = topology.pattern.columns if task.kind == "input_grad" else topology.pattern.rows
    return topology.density * READ[key] * batch > reused * (batch + FILL[key])


def described(task: Task, topology: Topology, batch: int, dtype: torch.dtype) -> str:
    """Which way a product goes, in words.

    >>> described(Task("forward", torch.bfloat16), Topology.full((64, 64), "b16x16"), 128, torch.bfloat16)
    'through dense panels of at most 32 MB of the weight'
    >>> described(Task("forward", torch.float32), Topology.random((64, 64), 0.05), 128, torch.float32)
    'grain by grain, 128 samples a program'
    """
    if by_panels(task, topology, batch, dtype):
        return f"through dense panels of at most {panels.BYTES >> 20} MB of the weight"
    rows, columns = topology.pattern.rows, topology.pattern.columns
    if task.kind == "value_grad":
        tile = grains.sample_tile(rows, batch, dtype)
    else:
        permuted = task.kind == "input_grad"
        outs, ins = (columns, rows) if permuted else (rows, columns)
        tile = grains.gather_tile(outs, ins, batch, dtype, permuted=permuted)
    return f"grain by grain, {tile.samples} sample{'s' * (tile.samples > 1)} a program"


__all__ = ["by_panels", "call", "described", "ordered", "refusal"]
