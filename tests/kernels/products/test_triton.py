"""Kernels for GPUs on machines without one: run by Triton's interpreter, compiled for some, and chosen by rule."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pollard.errors import InvalidInput, KernelError
from pollard.formats.topology import Topology
from pollard.kernels.products.cuda import dense
from pollard.kernels.products.cuda import products as cuda
from pollard.kernels.products.cuda.grains import gather_tile, sample_tile
from pollard.kernels.products.cuda.launch import ALWAYS
from pollard.kernels.products.task import Task

triton = pytest.importorskip("triton", reason="Triton is made for Linux on x86-64 alone")

TRIALS = Path(__file__).with_name("triton_trials.py")
DEVICE = torch.device("cuda", 0)
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def test_products_equal_their_twins_in_the_interpreter():
    # In a process of its own: Triton asks whether to interpret as it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TRIALS)]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " skipped" not in run.stdout


def compiled(name, dtype, capability, tile, outs, ins):
    """The assembly of a kernel for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pollard.kernels.products.cuda import code

    kernel = getattr(code, name)
    constants = {
        "OUTS": outs, "INS": ins, "OUT_STEP": 1, "IN_STEP": outs, "PERMUTED": False, "BIAS": True, "ACTIVATION": "gelu",
        "x_sample": 1, "y_sample": 1, "grad_sample": 1, **tile.options(outs),
    }  # fmt: skip
    options = {each: constants.pop(each) for each in ("num_warps", "num_stages")} | ALWAYS
    constants = {each: value for each, value in constants.items() if each in kernel.arg_names}
    pointers = dict.fromkeys(("x", "values", "bias", "y", "grad", "out"), NAMES[dtype])
    pointers |= {"pointers": "*i32", "places": "*u16", "entries": "*i32", "order": "*i32"}
    signature = {each: "constexpr" if each in constants else pointers.get(each, "i32") for each in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, each in enumerate(signature) if each not in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, "bf16"), (torch.float32, "tf32")], ids=str)
@pytest.mark.parametrize(("outs", "ins"), [(8, 1), (16, 16)])
def test_grains_are_multiplied_by_matrix_units(monkeypatch, tmp_path, capability, dtype, unit, outs, ins):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, tile in (
        ("gather", gather_tile(outs, ins, 4096, dtype, permuted=True)),
        ("sample", sample_tile(outs, 4096, dtype)),
    ):
        ptx = compiled(name, dtype, capability, tile, outs, ins)
        products = [line for line in ptx.splitlines() if "mma" in line and f".{unit}" in line]
        assert products
        assert "cp.async" in ptx  # loads are under way while others are multiplied


def test_single_weights_and_single_samples_compile(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for batch in (1, 4096):
        assert "fma" in compiled(
            "gather", torch.bfloat16, 90, gather_tile(1, 1, batch, torch.bfloat16, permuted=False), 1, 1
        )


@pytest.mark.parametrize(
    ("pattern", "density", "batch", "dtype", "kind", "expected"),
    [
        ("unstructured", 0.1, 4096, torch.bfloat16, "forward", True),
        ("unstructured", 0.005, 4096, torch.bfloat16, "forward", False),
        ("unstructured", 0.1, 16, torch.bfloat16, "forward", False),
        ("unstructured", 0.05, 4096, torch.float32, "forward", False),
        ("b16x16", 0.1, 4096, torch.bfloat16, "input_grad", False),
        ("v16", 0.1, 4096, torch.bfloat16, "forward", False),
        ("v16", 0.1, 4096, torch.bfloat16, "input_grad", True),
        ("v16", 0.5, 4096, torch.float16, "value_grad", True),
    ],
)
def test_whether_zeros_are_multiplied_too_is_a_rule(pattern, density, batch, dtype, kind, expected):
    topology = Topology.random((640, 640), density, pattern, torch.Generator().manual_seed(0))
    assert cuda.by_panels(Task(kind, dtype), topology, batch, dtype) is expected


def test_where_they_do_not_serve_they_say_why(monkeypatch):
    assert "run on CUDA" in cuda.refusal(torch.device("cpu"), torch.float32)
    assert "torch.float64" in cuda.refusal(DEVICE, torch.float64)
    assert "finds no CUDA device" in cuda.refusal(DEVICE, torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), "7.5, 8.0 is needed"), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=capability: found)
        cuda._unfit.cache_clear()
        found = cuda.refusal(DEVICE, torch.bfloat16)
        assert found is expected or expected in found
    monkeypatch.setattr(torch.version, "hip", "6.4")
    cuda._unfit.cache_clear()
    assert "ROCm" in cuda.refusal(DEVICE, torch.float16)
    monkeypatch.setattr(cuda, "find_spec", lambda _: None)
    cuda._unfit.cache_clear()
    assert "triton is not installed" in cuda.refusal(DEVICE, torch.float16)
    cuda._unfit.cache_clear()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("PassManager::run failed"), KernelError),
        (torch.OutOfMemoryError("none left"), torch.OutOfMemoryError),
        (InvalidInput("a capture", "none", "Warm up."), InvalidInput),
    ],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
def test_what_does_not_compile_is_left_to_torch_and_all_else_is_told(monkeypatch, raised, expected):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(cuda.grains, "Launch", fails)
    topology = Topology.full((8, 4), "v8")
    tensors = torch.ones(1, 4), torch.ones(topology.nnz)
    with pytest.raises(expected):
        cuda.call(Task("forward", torch.float32), topology, tensors)
    monkeypatch.setattr(dense, "Launch", fails)
    with pytest.raises(expected):
        cuda.ordered(Topology.full((8, 4), "b4x4"), torch.ones(40, 8))
