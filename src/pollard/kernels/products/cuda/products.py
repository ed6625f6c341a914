"""The three products by Triton's compiler and torch's dense ones, on CUDA: float32 and half precision, sums in float32."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from pollard.errors import KernelError, PollardError
from pollard.formats.topology import Topology
from pollard.kernels.products.cuda import grains, panels
from pollard.kernels.products.cuda.launch import version
from pollard.kernels.products.cuda.rows import by_columns, by_rows
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
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    return _unfit(device.index)


@cache
def _unfit(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip:
        return "not tried on ROCm"
    found = torch.cuda.get_device_capability(index)
    needed = "{}.{}".format(*CAPABILITY)
    return None if found >= CAPABILITY else "compute capability {}.{}, ".format(*found) + f"{needed} is needed"


def call(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> Call:
    """The call for tensors of such shapes and strides. Raises KernelError where a kernel does not compile."""
    make = _value_grad if task.kind == "value_grad" else _dense
    product = make(task, topology, tensors[0])
    try:
        product(*tensors)
    except (torch.OutOfMemoryError, PollardError):
        raise
    except Exception as error:  # Triton has no class of its own for all that can go wrong in its passes
        raise KernelError(
            f"Triton {version()} on a product with {topology.pattern}: {type(error).__name__}: {error}",
            "a kernel",
            "Plain torch multiplies instead. Another version of triton may help.",
        ) from error
    return product


def _dense(task: Task, topology: Topology, left: Tensor) -> Call:
    batch, dtype = len(left), left.dtype
    rows = (by_rows if task.kind == "forward" else by_columns)(topology, left.device)
    tile = grains.gather_tile(rows.outs, rows.ins, batch, dtype, permuted=rows.entries is not None)
    # No view, so that it may be written to.
    sizes, strides = (batch, rows.features), (rows.features, 1) if task.rows else (1, batch)

    def run(left: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        values, bias = values.contiguous(), bias if bias is None else bias.contiguous()
        y = left.new_empty_strided(sizes, strides)
        if by_panels(task, topology, batch, dtype):
            panels.multiply(left, values, bias, y, rows, activation=task.activation)
        else:
            grains.gather(left, values, bias, y, rows, activation=task.activation, tile=tile)
        return y

    return run


def _value_grad(task: Task, topology: Topology, grad: Tensor) -> Call:
    batch, dtype, rows = len(grad), grad.dtype, by_rows(topology, grad.device)
    tile = grains.sample_tile(rows.outs, batch, dtype)

    def run(grad: Tensor, x: Tensor) -> Tensor:
        found = torch.empty(topology.nnz, dtype=task.values, device=grad.device)
        if by_panels(task, topology, batch, dtype):
            panels.sample(grad, x, found, rows)
        else:
            grains.sample(grad, x, found, rows, tile=tile)
        return found

    return run


def by_panels(task: Task, topology: Topology, batch: int, dtype: torch.dtype) -> bool:
    """Whether a product goes by panels: by a rule, not by time, as the two ways add in other orders.

    Grain by grain a number is read for as many products as the grain has weights of it; in the time of such a read, panels multiply
    `READ` numbers, and to fill a panel takes them as long as `FILL` samples more.
    """
    key = "tf32" if dtype == torch.float32 and grains.tf32() else dtype
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


__all__ = ["by_panels", "call", "described", "refusal"]
