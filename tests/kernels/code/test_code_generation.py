"""Generated code: a pure function of its spec, for every instruction set, cached so that damage cannot be run."""

import os
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from pollard.activations import ACTIVATIONS
from pollard.errors import KernelError, KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels.code import jit, once, target
from pollard.kernels.code.emit import EMITTERS, emit
from pollard.kernels.code.emit.n_of_m import serves
from pollard.kernels.code.launch import Launch
from pollard.kernels.code.spec import AMX, INDICES, STREAMS, KernelSpec
from pollard.kernels.code.target import TARGETS, host_isas
from pollard.kernels.products import dispatch, reference

VECTORS = {"avx512": r"%zmm\d", "avx2": r"%ymm\d", "neon": r"fmla\tv\d+\.4s"}
# One instruction each, for products of 32 by 32 bits of which all 64 are wanted; none that rounds twice what plain torch rounds.
WIDE = {"avx512": r"\tvpmuludq\t.*%zmm", "avx2": r"\tvpmuludq\t.*%ymm", "neon": r"\tumull2?\tv\d+\.2d"}
FUSED = r"\t(vfn?m(add|sub)|fml[as]|fn?m(add|sub))"


def few(isa):
    for rows, columns, batch_first in ((1, 1, False), (1, 9, True), (4, 1, True), (16, 2, False)):
        samples = TARGETS[isa].lanes // 2
        yield KernelSpec(
            "skinny",
            isa,
            rows=rows,
            columns=columns,
            abreast=samples,
            batch_first=batch_first,
            bias=True,
            activation="gelu",
        )
    for rows in (2, 4):
        yield KernelSpec("skinny", isa, rows=rows, abreast=1, bias=True, activation="gelu")
    yield KernelSpec("skinny", isa, abreast=2, tiled=True, index=2, bias=True, activation="gelu")


def bitmaps(isa):
    if isa != "avx512":
        return
    for numbers in ("float32", "bfloat16", "float16"):
        yield KernelSpec("bitmap", isa, abreast=1, numbers=numbers, values=numbers, bias=True, activation="gelu")
    for samples in (1, 3, 8):
        yield KernelSpec("bitmap", isa, abreast=samples, numbers="bfloat16", values="bfloat16", pairs=True)


def specs(isa):
    for rows in (1, 4, 8):
        for operation in ("gather", "scatter"):
            yield KernelSpec(
                operation, isa, rows=rows, block=min(rows, 4), vectors=2, wide=True, ragged=True, tiled=True
            )
        for dots in {4, TARGETS[isa].lanes}:
            for vectors in (0, 2):
                yield KernelSpec("sddmm", isa, rows=rows, block=min(rows, 4), vectors=vectors, dots=dots, tiled=True)
    yield KernelSpec("matvec", isa, rows=16, block=TARGETS[isa].lanes, bias=True, activation="relu")
    if serves(TARGETS[isa], 2, 4):
        for numbers in ("float32", "bfloat16", "float16"):
            yield KernelSpec("n_of_m", isa, n=2, m=4, bias=True, activation="relu", numbers=numbers, values=numbers)
    yield from few(isa)
    yield from bitmaps(isa)
    yield from halves(isa)
    yield KernelSpec("pack", isa, vectors=2, packed=True)
    yield KernelSpec("pack", isa, vectors=2, ragged=True, packed=False)
    for operation in (*INDICES, "gather", "matvec", "scatter"):
        for size in (2, 4):
            yield KernelSpec(operation, isa, index=size)
    yield from (KernelSpec(operation, isa) for operation in STREAMS)
    yield KernelSpec("sddmm", isa, dots=4, index=2)
    yield from convolutions(isa)
    yield KernelSpec("turn", isa, size=2, index=2)
    yield KernelSpec("move", isa, rows=16, size=8)


def halves(isa):
    for numbers in ("bfloat16", "float16"):
        yield KernelSpec("gather", isa, rows=4, block=4, columns=8, numbers=numbers, ragged=True, tiled=True)
        yield KernelSpec("sddmm", isa, dots=4, vectors=2, ragged=True, numbers=numbers)
        yield KernelSpec("pack", isa, numbers=numbers)
    yield KernelSpec("order", isa, numbers="bfloat16", values="bfloat16")
    numbers = {"numbers": "bfloat16", "values": "bfloat16", "pairs": True}
    for operation in AMX if isa == "avx512" else ():
        for columns, permuted in ((1, False), (16, operation == "amx_gather")):
            kind = {"rows": 16, "block": 4, "columns": columns, "permuted": permuted}
            yield KernelSpec(operation, isa, wide=True, ragged=True, bias=True, activation="relu", **kind, **numbers)
    for operation in ("gather", "scatter", "sddmm") if isa == "avx512" else ():
        yield KernelSpec(operation, isa, rows=2, block=2, dots=4, vectors=2, ragged=True, tiled=True, **numbers)


def convolutions(isa):
    lanes = TARGETS[isa].lanes
    reach = tuple((lanes * vector, lanes * vector) for vector in range(3))
    for activation in ACTIVATIONS:
        yield KernelSpec("convolve", isa, rows=4, block=4, abreast=1, reach=reach, activation=activation)
    for abreast in (1, lanes, 2 * lanes):
        yield KernelSpec("convolve", isa, rows=4, block=4, abreast=abreast, reach=reach, bias=True, activation="relu")
        yield KernelSpec("transposed", isa, rows=4, block=4, abreast=abreast, reach=reach)
        yield KernelSpec("correlate", isa, dots=4, abreast=abreast, reach=reach)
    yield KernelSpec("convolve", isa, columns=9, abreast=1, reach=reach, numbers="bfloat16", values="bfloat16")


@pytest.mark.parametrize("isa", TARGETS)
def test_every_operation_assembles_for_every_instruction_set(isa):
    seen = set()
    for spec in specs(isa):
        text = jit.assembly(spec)
        seen.add(spec.operation)
        wanted = VECTORS[isa] if spec.operation != "pack" or isa != "neon" else r"\tst[rp]\tq\d"
        assert spec.operation in INDICES + STREAMS or re.search(wanted, text), spec
    lacking = set() if isa == "avx512" else {*AMX, "bitmap"}
    assert seen == set(EMITTERS) - lacking - (set() if serves(TARGETS[isa], 2, 4) else {"n_of_m"})


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("operation", STREAMS)
def test_streams_multiply_in_one_instruction_and_fuse_nothing(isa, operation):
    text = jit.assembly(KernelSpec(operation, isa))
    assert len(re.findall(WIDE[isa], text)) >= 30
    assert not re.search(FUSED, text)


def test_code_is_a_pure_function_of_the_spec():
    for spec in specs("avx512"):
        assert str(emit(spec)) == str(emit(spec))


def test_an_unstructured_avx2_gather_multiplies_straight_from_memory():
    text = jit.assembly(KernelSpec("gather", "avx2", vectors=8))
    assert len(re.findall(r"vfmadd231ps\t(\d+)?\(", text)) >= 16


def inner_loops(spec):
    # Blocks of the assembly that jump back to their own beginning, and multiply.
    blocks = re.split(r"\n(?=\.LBB)", jit.assembly(spec))
    return [
        block
        for block in blocks
        if re.search(r"\tj\w+\t" + re.escape(block.partition(":")[0]) + r"\b", block) and "%zmm" in block
    ]


@pytest.mark.parametrize("block", [1, 2, 4])
def test_one_instruction_adds_two_products_and_widens_nothing(block):
    spec = KernelSpec(
        "gather", "avx512", rows=block, block=block, vectors=2, numbers="bfloat16", values="bfloat16", pairs=True
    )
    loop = next(each for each in inner_loops(spec) if "vdpbf16ps" in each)
    # Of two columns: their two units of two vectors zipped, and each multiplied by each row.
    assert loop.count("vdpbf16ps") == 2 * 2 * block
    assert loop.count("vpunpcklwd\t%zmm") + loop.count("vpunpckhwd\t%zmm") == 2 * 2
    assert not re.search(r"vfmadd|vpsll|vpsrl|vpand", loop)
    dots = KernelSpec("sddmm", "avx512", rows=block, block=block, dots=8, numbers="bfloat16", vectors=0, pairs=True)
    loops = [each for each in inner_loops(dots) if "vdpbf16ps" in each]
    # Whole blocks of dot products, and half of one for what is left.
    assert {loop.count("vdpbf16ps") for loop in loops} == {8, 4}
    assert not re.search(r"vfmadd|vpsll|vpsrl|vpand|vpunpck", "".join(loops))


@pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")
def test_code_for_this_cpu_uses_nothing_that_it_does_not_tell_of():
    features = jit._features(KernelSpec("pack", host_isas()[0])).split(",")
    hidden = [name for name, there in jit.binding.get_host_cpu_features().items() if not there]
    assert hidden
    assert {f"-{name}" for name in hidden} <= set(features)
    assert not {f"+{name}" for name in hidden} & set(features)


def test_code_for_pairs_is_cached_apart():
    spec = KernelSpec("sddmm", "avx512", dots=4, numbers="bfloat16")
    assert jit._path(spec) != jit._path(replace(spec, pairs=True))


def test_a_spec_that_makes_no_sense_is_refused():
    with pytest.raises(KernelError, match="block that divides the rows"):
        KernelSpec("gather", "avx2", rows=4, block=3)


@pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")
def test_machine_code_is_cached_and_a_damaged_file_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path))
    spec = KernelSpec("pack", host_isas()[0], vectors=3, packed=False)
    jit._made(spec)
    (file,) = (tmp_path / "kernels").iterdir()
    content = file.read_bytes()
    monkeypatch.setattr(jit, "_compile", lambda spec: pytest.fail("compiled though cached"))
    jit._made(spec)
    file.write_bytes(b"\x7f" + content[1:-40] + content[-32:])
    monkeypatch.setattr(jit, "_compile", lambda spec: content[:-32])
    jit._made(spec)
    assert file.read_bytes() == content


@pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path / "file"))
    assert jit._made(KernelSpec("pack", host_isas()[0], vectors=5, packed=False)).entry


@pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")
def test_a_kernel_that_does_not_compile_falls_back_to_the_twin_with_one_warning(monkeypatch):
    def refuse(spec):
        raise KernelError("an LLVM error", "IR that compiles", "Report it.")

    monkeypatch.setattr(jit, "load", refuse)
    monkeypatch.setattr(once, "_told", set())
    topology, values, x = Topology.full((3, 4)), torch.randn(12), torch.randn(5, 4)
    with pytest.warns(KernelFallback, match="Plain torch runs instead"):
        first = dispatch.forward(x, values, topology)
    assert torch.equal(first, reference.forward(x, values, topology))
    # Warnings are errors here: a second one would end the test.
    for _ in range(2):
        dispatch.forward(x, values, topology)
        dispatch.input_grad(torch.randn(5, 3), values, topology)
        dispatch.value_grad(torch.randn(5, 3), x, topology)


def error_of(spec):
    with pytest.raises(KernelError) as caught:
        jit.load(spec)
    return caught.value


@pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")
def test_a_kernel_that_does_not_compile_is_tried_once_whoever_asks_however_often(monkeypatch):
    tried = []

    def refuse(spec):
        tried.append(spec)
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(jit, "_cached", lambda spec: None)
    monkeypatch.setattr(jit, "_compile", refuse)
    monkeypatch.setattr(jit, "_loaded", {})
    monkeypatch.setattr(jit, "_refused", {})
    monkeypatch.setattr(once, "_told", set())
    values, told = torch.randn(12), []

    def ask():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in (5, 6, 7):  # and a topology of its own: nothing is remembered with the layer
                dispatch.forward(torch.randn(batch, 4), values, Topology.full((3, 4)))
        told.extend(caught)

    ask()
    assert len(tried) == len(set(tried)) == len(told) > 0
    assert all("no such instruction" in str(each.message) for each in told)
    spec = tried[0]
    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda _: error_of(spec), range(8)))
    assert len(set(map(str, errors))) == 1
    assert "no such instruction" in str(errors[0])
    assert len(set(map(id, errors))) == 8
    assert tried.count(spec) == 1


@pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")
def test_threads_that_meet_a_kernel_that_does_not_compile_try_it_once(monkeypatch):
    tried, together = [], threading.Barrier(8, timeout=60)

    def refuse(spec):
        tried.append(spec)
        time.sleep(0.05)
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(jit, "_cached", lambda spec: None)
    monkeypatch.setattr(jit, "_compile", refuse)
    monkeypatch.setattr(jit, "_refused", {})
    spec = KernelSpec("pack", host_isas()[0], vectors=7, packed=False)

    def ask(_):
        together.wait()
        return error_of(spec)

    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(ask, range(8)))) == 8
    assert tried == [spec]


def test_a_cpu_without_kernels_is_told_once_that_products_are_slow(monkeypatch):
    monkeypatch.setattr(target, "host_isas", tuple)
    monkeypatch.setattr(once, "_told", set())
    monkeypatch.delenv("POLLARD_TARGET", raising=False)
    target._resolved.cache_clear()
    values, x = torch.randn(12), torch.randn(5, 4)
    try:
        with pytest.warns(KernelFallback, match="neither AVX2 with FMA nor NEON.*slower than the dense layer"):
            dispatch.forward(x, values, Topology.full((3, 4)))
        # Warnings are errors here: a second one would end the test.
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            dispatch.forward(x.to(dtype), values.to(dtype), Topology.full((3, 4)))
    finally:
        target._resolved.cache_clear()


def test_who_asks_for_plain_torch_is_not_warned(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "reference")
    monkeypatch.setattr(once, "_told", set())
    dispatch.forward(torch.randn(5, 4), torch.randn(12), Topology.full((3, 4)))
    assert not once._told


def test_an_instruction_set_this_cpu_lacks_is_refused_with_what_it_has(monkeypatch):
    absent = next(isa for isa in TARGETS if isa not in host_isas())
    monkeypatch.setenv("POLLARD_TARGET", absent)
    with pytest.raises(KernelError, match="an instruction set of this CPU"):
        dispatch.forward(torch.ones(1, 2), torch.ones(2), Topology.full((1, 2)))


def test_the_whole_library_runs_on_plain_torch():
    program = (
        "import torch, pollard\n"
        "layer = pollard.nn.SparseLinear.random(20, 8, density=0.5)\n"
        "layer(torch.randn(3, 20)).sum().backward()\n"
        "assert layer.values.grad is not None\n"
        "from pollard.kernels.code import jit\n"
        "assert not jit._loaded\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "POLLARD_TARGET": "reference"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_launch_knows_the_arguments_of_its_kernel():
    spec = KernelSpec("within", host_isas()[0])
    with pytest.raises(KernelError, match=r"arguments \['score'\] of a kernel for 'within'"):
        Launch(spec, 1, 1, score=torch.ones(4))
    # Nothing runs where an argument is missing, or one too many: memory that is not there would be read.
    launch = Launch(spec, 1, 1, bounds=torch.zeros(2, dtype=torch.int32), PASSES=1, LOW=0)
    with pytest.raises(KernelError, match="without scores, found, counts, HIGH"):
        launch.at(1)
    with pytest.raises(struct.error):
        launch.at(1, HIGH=1)(0)
