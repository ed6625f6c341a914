"""The instructions that add products of pairs of bfloat16 numbers and that spread such numbers out, in the words of Intel's manual, for CPUs that lack them."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code import jit
from pollard.kernels.code.flow import I32, Flow
from pollard.kernels.code.simd import vector
from pollard.kernels.products import product
from sixteen_lanes import expanded

ADDS, EXPANDS = "llvm.x86.avx512bf16.dpbf16ps.512", "llvm.x86.avx512.mask.expand.v32i16"


def added(build, addend, left, right):
    """addend + high * high + low * low of each word, rounded to nearest after each; kernels take subnormal numbers for zero anyway."""
    lanes = addend.type.count
    fma = build.module.globals.get(f"llvm.fma.v{lanes}f32") or ir.Function(
        build.module, ir.FunctionType(vector(lanes), [vector(lanes)] * 3), f"llvm.fma.v{lanes}f32"
    )

    def each(word):
        return ir.Constant(ir.VectorType(I32, lanes), [word] * lanes)

    for half in (
        lambda words: build.and_(words, each(-(1 << 16))),
        lambda words: build.shl(words, each(16)),
    ):
        numbers = [build.bitcast(half(words), vector(lanes)) for words in (left, right)]
        addend = build.call(fma, [*numbers, addend])
    return addend


TWINS = {ADDS: added, EXPANDS: expanded}


def pretend(patch):
    """Take this CPU, which has AVX-512, for one that has those instructions too; `patch` undoes it."""
    usual = Flow.call

    def call(code, name, result, arguments, **options):
        twin = TWINS.get(name)
        return twin(code.ir, *arguments) if twin else usual(code, name, result, arguments, **options)

    patch.setattr(Flow, "call", call)
    # Nor has it what is named to LLVM.
    patch.setattr(jit, "_features", lambda spec: jit.FEATURES[spec.isa])
    for asked in ("adds_pairs", "expands_words"):
        patch.setattr(product, asked, lambda: True)
