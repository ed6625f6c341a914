"""A plugin of pytest for CPUs without AVX-512: the kernels of 16 lanes run there too, as instructions of AVX2.

LLVM splits a vector of 512 bits in two where the CPU has none. Only the instructions that are called by their names are written
lane by lane here, in the words of Intel's manual. So what a kernel computes is tried on any CPU with AVX2; how fast, is not.

Run with ``-p sixteen_lanes``, in a process of its own; ``--sample=N`` takes N cases of each test, spread over what it has.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from llvmlite import binding, ir

from pollard.kernels.code import jit, target
from pollard.kernels.code.emit import emit
from pollard.kernels.code.flow import I32, Flow

ISA = "avx512"
LANES = target.TARGETS[ISA].lanes


def pytest_addoption(parser):
    parser.addoption("--sample", type=int, default=None, help="of the cases of a test, how many are run at most")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    # Before any module asks which instruction sets there are.
    pretend()


def pytest_collection_modifyitems(config, items):
    most = config.getoption("--sample")
    if most is not None:
        items[:] = sample(items, most)


def pytest_sessionfinish(session):
    if {spec.isa for spec in jit._loaded} != {ISA}:
        raise RuntimeError(f"kernels ran for {sorted({spec.isa for spec in jit._loaded})}, not for {ISA} alone")


def sample(items, most):
    """Of the cases of each test `most`, or a third of them, spread from the first to the last; none that runs no kernel."""
    cases = defaultdict(list)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("target") != "reference":
            cases[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for own in cases.values():
        parts = max(1, min(most, len(own) // 3))
        # The middle of each part: what comes first is often the least.
        kept |= {id(own[len(own) * (2 * part + 1) // (2 * parts)]) for part in range(parts)}
    return [item for item in items if id(item) in kept]


def pretend():
    """Take this CPU, which has AVX2, for one that has AVX-512 and nothing else, until the process ends."""
    if ISA in target.host_isas():
        raise RuntimeError("this CPU has AVX-512: there is nothing to pretend")
    usual, target.FEATURES[ISA] = Flow.call, target.FEATURES["avx2"]
    target.host_isas = jit.host_isas = lambda: (ISA,)
    jit._optimised = as_emitted

    def call(code, name, result, arguments, **options):
        if name in BY_LANE:
            return BY_LANE[name](code.ir, *arguments)
        if name.startswith("llvm.x86.avx512."):
            raise NotImplementedError(f"{name} has no form lane by lane yet: write one in {__file__}")
        return usual(code, name, result, arguments, **options)

    Flow.call = call


def as_emitted(spec, machine):
    """A kernel as it was written: to optimise so long a function takes longer than running it does here."""
    module = emit(spec)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    return parsed


def permuted(build, value, places):
    """In each lane, the lane of `value` that the lowest four bits of `places` name."""
    return _lanes(build, value.type, lambda lane: build.extract_element(value, _low(build, places, lane)))


def permuted_two(build, first, places, second):
    """As `permuted`, of two vectors: the fifth bit says which."""

    def picked(lane):
        place = build.extract_element(places, I32(lane))
        in_second = build.icmp_unsigned("!=", build.and_(place, I32(LANES)), I32(0))
        both = (build.extract_element(vector, _low(build, places, lane)) for vector in (second, first))
        return build.select(in_second, *both)

    return _lanes(build, first.type, picked)


def compressed(build, values, rest, mask):
    """The lanes of `values` that `mask` allows, pushed together to the first ones; those of `rest` behind them."""
    count = I32(0)
    for lane in range(LANES):
        allowed = build.extract_element(mask, I32(lane))
        value = build.extract_element(values, I32(lane))
        # Where nothing is kept the count may be all lanes: an insertion there is not defined, and is not chosen.
        rest = build.select(allowed, build.insert_element(rest, value, count), rest)
        count = build.add(count, build.zext(allowed, I32))
    return rest


def expanded(build, packed, rest, mask):
    """The first lanes of `packed`, one after another, in those that `mask` allows; of `rest` elsewhere."""
    place = I32(0)
    for lane in map(I32, range(packed.type.count)):
        allowed = build.extract_element(mask, lane)
        # Behind the last lane nothing is allowed any more.
        value = build.extract_element(packed, build.and_(place, I32(packed.type.count - 1)))
        rest = build.select(allowed, build.insert_element(rest, value, lane), rest)
        place = build.add(place, build.zext(allowed, I32))
    return rest


BY_LANE = {
    "llvm.x86.avx512.permvar.sf.512": permuted,
    "llvm.x86.avx512.vpermi2var.d.512": permuted_two,
    "llvm.x86.avx512.vpermi2var.ps.512": permuted_two,
    f"llvm.x86.avx512.mask.compress.v{LANES}i32": compressed,
    f"llvm.x86.avx512.mask.expand.v{LANES}f32": expanded,
}


def _lanes(build, kind, made):
    vector = ir.Constant(kind, ir.Undefined)
    for lane in range(LANES):
        vector = build.insert_element(vector, made(lane), I32(lane))
    return vector


def _low(build, places, lane):
    return build.and_(build.extract_element(places, I32(lane)), I32(LANES - 1))
