"""What this machine is to Pollard, and whether every kernel computes what the slow twin computes."""

from __future__ import annotations

import math
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pollard.errors import KernelFallback, PollardError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import ROWS, Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code import target
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products.backend import CUDA, choose
from pollard.kernels.products.operand import name_of
from pollard.ops import convolution_operators, matmul
from pollard.report.dense_ways import NN_LINEAR, PACKED, WITH_WEIGHT
from pollard.report.machine import cpu_name, device_name, machine
from pollard.report.timing import interleaved, on_threads
from pollard.settings import Settings

# Not multiples of any vector or tile: the tails of every kernel run too.
SHAPE, BATCH = (48, 84), 37
DENSITY = 0.25
# Samples that have kernels of their own.
ONE, FEW = 1, 3
SAMPLES = {ONE: ", one sample", FEW: ", three samples"}
# Pattern, dtype, batch.
KINDS: tuple[tuple[str, torch.dtype, int], ...] = (
    *((str(Pattern(rows)), torch.float32, BATCH) for rows in ROWS),
    *((pattern, torch.float32, BATCH) for pattern in ("b4x2", "2:4")),
    *((pattern, torch.float32, ONE) for pattern in ("unstructured", "b4x2", "2:4")),
    *((pattern, torch.float32, FEW) for pattern in ("unstructured", "v4")),
    *((pattern, dtype, BATCH) for pattern in ("unstructured", "v4") for dtype in (torch.bfloat16, torch.float16)),
    *(("unstructured", torch.bfloat16, batch) for batch in (ONE, FEW)),
)
# Of convolutions: channels of the result and of the images, and their sides: vectors along rows, and across samples.
CHANNELS, SIDES = (8, 5), (20, 4)
WINDOW = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
# Of dense torch: large enough for its blocks, small enough for a tenth of a second in all.
DENSE_SHAPE, DENSE_ROUNDS = (1024, 1024, 64), 5
FAR_FASTER = 1.25


@dataclass(frozen=True)
class Check:
    """One thing that was tried: its name, whether it is right, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """Facts about the machine and the installation, and the checks that were run."""

    facts: dict[str, str]
    checks: list[Check]

    @property
    def healthy(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


def examine() -> Diagnosis:
    """The facts of this machine, and every operation on every pattern held against plain torch in double precision.

    Raises SettingsError or KernelError where an environment variable asks for what cannot be.
    """
    isa = target.current()
    facts = _machine(isa) | _versions() | {"dense float32": dense_float32()} | _folders(Settings.read())
    return Diagnosis(facts, [*kernel_checks(), *convolution_checks(), *gpu_checks()])


def dense_float32(seed: int = 0) -> str:
    """How fast dense torch multiplies on one thread, as `nn.Linear` and as oneDNN with a packed weight, and what to do about it."""
    rows, columns, batch = DENSE_SHAPE
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, columns, generator=generator, dtype=torch.float32, device="cpu")
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float32, device="cpu")
    try:
        calls = {NN_LINEAR: WITH_WEIGHT["linear"](x, weight), PACKED: WITH_WEIGHT[PACKED](x, weight)}
    except (RuntimeError, AttributeError):
        return f"{NN_LINEAR} alone: this torch has no oneDNN for it"
    with on_threads(1):
        ms = {way: statistics.median(samples) for way, samples in interleaved(calls, DENSE_ROUNDS).items()}
    return dense_compared(*(2e-6 * math.prod(DENSE_SHAPE) / ms[way] for way in (NN_LINEAR, PACKED)))


def dense_compared(nn_linear: float, packed: float) -> str:
    """The sentence about dense torch that reaches so many GFLOP/s.

    >>> print(dense_compared(60.0, 63.0))
    nn.Linear 60 GFLOP/s on a thread, oneDNN packed 63
    """
    told = f"{NN_LINEAR} {nn_linear:.0f} GFLOP/s on a thread, {PACKED} {packed:.0f}"
    if packed < FAR_FASTER * nn_linear:
        return told
    return (
        f"{told}: nn.Linear takes {packed / nn_linear:.2f} times as long as torch could. Compare sparse layers with the best dense "
        "way (pollard bench does). For inference, torch.compile(model, dynamic=True) under torch.no_grad() with "
        "torch._inductor.config.freezing = True packs float32 weights for oneDNN; without dynamic=True it packs them for MKL."
    )


def kernel_checks(seed: int = 0, device: str = "cpu") -> list[Check]:
    """One check for each operation and kind of operands, drawn from `seed`."""
    return [_kernel_check(name, kind, seed, device) for name, kind in product(_OPERATIONS, KINDS)]


def gpu_checks() -> list[Check]:
    """The same on CUDA, where kernels of ours serve it."""
    return kernel_checks(device="cuda") if choose(torch.device("cuda"), torch.float32)[0] is CUDA else []


@dataclass(frozen=True)
class _Operands:
    x: Tensor
    grad: Tensor
    values: Tensor
    topology: Topology

    @classmethod
    def draw(cls, pattern: Pattern, dtype: torch.dtype, batch: int, seed: int) -> _Operands:
        generator = torch.Generator().manual_seed(seed)
        topology = Topology.random(SHAPE, pattern.density or DENSITY, pattern, generator=generator)
        (rows, columns), nnz = SHAPE, topology.nnz
        x, grad, values = (
            torch.randn(*size, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
            for size in ((batch, columns), (batch, rows), (nnz,))
        )
        return cls(x, grad, values, topology)

    def to(self, device: str) -> _Operands:
        return _Operands(self.x.to(device), self.grad.to(device), self.values.to(device), self.topology)

    def weight(self) -> Tensor:
        dense: Tensor = SparseMatrix(self.values, self.topology).to_dense()
        return dense.double()


# Operation name -> the kernel's result, and the same in dense double precision.
_OPERATIONS: dict[str, tuple[Callable[[_Operands], Tensor], Callable[[_Operands], Tensor]]] = {
    "forward": (
        lambda o: matmul.linear(o.x, o.values, o.topology),
        lambda o: o.x.double() @ o.weight().T,
    ),
    "input_grad": (
        lambda o: matmul.input_grad(o.grad, o.values, o.topology),
        lambda o: o.grad.double() @ o.weight(),
    ),
    "value_grad": (
        lambda o: matmul.value_grad(o.grad, o.x, o.topology),
        lambda o: (o.grad.double().T @ o.x.double()).flatten()[o.topology.weight_positions()],
    ),
}


def _kernel_check(name: str, kind: tuple[str, torch.dtype, int], seed: int, device: str) -> Check:
    (kernel, twin), (pattern, dtype, batch) = _OPERATIONS[name], kind
    operands = _Operands.draw(Pattern.parse(pattern), dtype, batch, seed)
    there = operands.to(device)
    label = f"{name} {pattern}" + f" {name_of(dtype)}" * (dtype != torch.float32) + SAMPLES.get(batch, "")
    label += " on CUDA" * (device != "cpu")
    # What is rounded to half precision at the end, once.
    rounded = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    return _compared(label, lambda: kernel(there).cpu(), lambda: twin(operands), max(*SHAPE, BATCH), rounded)


def _compared(
    label: str, kernel: Callable[[], Tensor], twin: Callable[[], Tensor], terms: int, rounded: float = 0.0
) -> Check:
    """Whether what a kernel makes of sums of so many `terms` is what its twin makes in double precision."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", KernelFallback)
            got = kernel()
    except (PollardError, KernelFallback) as failed:
        return Check(label, ok=False, detail=str(failed))
    want = twin()
    error = float((got.double() - want).abs().max() / want.abs().max())
    allowed = 8 * torch.finfo(torch.float32).eps * terms**0.5 + rounded
    return Check(label, ok=error <= allowed, detail=f"largest error {error:.1e} of the largest value")


def convolution_checks(seed: int = 0) -> list[Check]:
    """One check for each product of a convolution, over images of each layout that kernels read them in."""
    kinds = product(("forward", "input_grad", "value_grad"), ("unstructured", "v4"), SIDES)
    return [_convolution_check(*kind, seed) for kind in kinds]


def _convolution_check(name: str, pattern: str, side: int, seed: int) -> Check:
    out, channels = CHANNELS
    generator = torch.Generator().manual_seed(seed)
    topology = Topology.random((out, channels * WINDOW.taps), DENSITY, pattern, generator=generator)
    x, grad, values = (
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        for size in ((BATCH, channels, side, side), (BATCH, out, side, side), (topology.nnz,))
    )
    ways: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
        "forward": lambda by, x, _, v: by.forward(x, v, topology, None, WINDOW),
        "input_grad": lambda by, _, g, v: by.input_grad(g, v, topology, WINDOW, (side, side)),
        "value_grad": lambda by, x, g, _: by.value_grad(g, x, topology, WINDOW),
    }
    # In double precision they are unfolded: no kernel computes that.
    return _compared(
        f"convolution {name} {pattern}, {side} x {side}",
        lambda: ways[name](convolution_operators, x, grad, values),
        lambda: ways[name](convolution_operators, x.double(), grad.double(), values.double()),
        max(topology.shape[1], BATCH * side * side),
    )


def _machine(isa: target.Target | None) -> dict[str, str]:
    caches = target.caches()
    return {
        "cpu": cpu_name(),
        "cores": f"{os.cpu_count() or 1} visible, {torch.get_num_threads()} threads in use (torch.set_num_threads)",
        "instruction sets": ", ".join(target.host_isas()) or "none that Pollard generates code for",
        "kernels": f"generated for {isa.isa}" if isa else "plain torch (the reference twin)",
        "bfloat16": "multiplied in pairs (AVX512_BF16) where that is measured to be faster, else as float32"
        if target.adds_pairs()
        else "multiplied as float32: no instruction for pairs (AVX512_BF16)",
        "gpu": _gpu(),
        "tiles": target.without_tiles() or "of AMX, for bfloat16 in grains of 16 rows, from two samples on",
        "caches of a core": f"L1 {caches.l1 >> 10} KiB, L2 {caches.l2 >> 10} KiB, L3 {caches.l3 >> 20} MiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _gpu() -> str:
    """What computes products there."""
    if not torch.cuda.is_available():
        return "none that torch finds"
    device = torch.device("cuda")
    backend, reason = choose(device, torch.float32)
    return f"{device_name(device)}: {backend.name}" + f" ({reason})" * (backend is not CUDA)


def _versions() -> dict[str, str]:
    try:
        own = version("pollard")
    except PackageNotFoundError:
        own = "not installed, running from source"
    built = machine()
    return {
        "pollard": own,
        "python": platform.python_version(),
        "torch": f"{built['torch']}, {built['torch_capability']}, MKL {built['mkl']}, oneDNN {built['onednn']}",
        "llvmlite": version("llvmlite"),
    }


def _folders(settings: Settings) -> dict[str, str]:
    return {
        "cache folder": f"{settings.cache} ({_writable(settings.cache)})",
        "data folder": f"{settings.data} ({_writable(settings.data)})",
        "settings": f"POLLARD_TARGET={settings.target} POLLARD_TUNING={settings.tuning} POLLARD_RESULTS={settings.results}",
    }


def _writable(folder: Path) -> str:
    """Tried, not guessed from permissions: a full or read-only file system has them too."""
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        return f"NOT writable: {error.strerror or error}"
    return "writable" if nearest == folder else "not made yet, can be"
