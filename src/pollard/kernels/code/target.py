"""The CPU that kernels are generated for: its vectors, its registers, its caches."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llvmlite import binding

from pollard.errors import KernelError
from pollard.kernels.code import permission
from pollard.settings import Settings

TRIPLES = {
    "avx512": "x86_64-unknown-linux-gnu",
    "avx2": "x86_64-unknown-linux-gnu",
    "neon": "aarch64-unknown-linux-gnu",
}
PAIRS = "avx512bf16"  # as LLVM calls it; Linux: avx512_bf16
WORDS = "avx512vbmi2"  # Linux: avx512_vbmi2
TILES = ("amx-tile", "amx-bf16")
FEATURES = {
    "avx512": "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx2,+fma,+f16c,+bmi,+bmi2,-prefer-256-bit",
    "avx2": "+avx2,+fma,+f16c,+bmi,+bmi2",
    "neon": "+neon",
}


@dataclass(frozen=True, order=True, slots=True)
class Target:
    """An instruction set as a generator sees it: fp32 lanes of a vector, and vector registers.

    >>> TARGETS["avx2"]
    Target(isa='avx2', lanes=8, registers=16)
    """

    isa: str
    lanes: int
    registers: int


TARGETS = {"avx512": Target("avx512", 16, 32), "avx2": Target("avx2", 8, 16), "neon": Target("neon", 4, 32)}


@dataclass(frozen=True, slots=True)
class Caches:
    """Bytes of the data caches of one core."""

    l1: int
    l2: int
    l3: int


@cache
def host_isas() -> tuple[str, ...]:
    """The instruction sets this CPU can run, best first; empty on a CPU Pollard has no generator for."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return ("neon",)
    features = binding.get_host_cpu_features()
    found = []
    if all(features.get(name) for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl")):
        found.append("avx512")
    if all(features.get(name) for name in ("avx2", "fma", "f16c")):
        found.append("avx2")
    return tuple(found)


@cache
def adds_pairs() -> bool:
    """Whether this CPU has an instruction that adds products of pairs of bfloat16 numbers, in vectors of AVX-512."""
    return "avx512" in host_isas() and bool(binding.get_host_cpu_features().get(PAIRS))


@cache
def expands_words() -> bool:
    """Whether it has, besides, one that spreads such numbers out to the lanes that a mask allows."""
    return adds_pairs() and bool(binding.get_host_cpu_features().get(WORDS))


@cache
def without_tiles() -> str:
    """Why no product is computed in tiles, registers of sixteen rows that AMX multiplies; "" where this CPU has them, and leave is given."""
    features = binding.get_host_cpu_features()
    lacking = [name for name in TILES if not features.get(name)]
    if "avx512" not in host_isas() or lacking:
        return f"this CPU tells of no {' and '.join(lacking or ['AVX-512'])}"
    return permission.refusal()


def current() -> Target | None:
    """The target in force, or None where plain torch runs instead (``POLLARD_TARGET=reference``, or an unknown CPU).

    Raises KernelError when POLLARD_TARGET names an instruction set that this CPU does not have.
    """
    return _resolved(Settings.asked_target())


@cache
def _resolved(wanted: str) -> Target | None:
    Settings.read()  # raises where the word is none of the known ones
    isas = host_isas()
    if wanted == "reference" or (wanted == "auto" and not isas):
        return None
    if wanted == "auto":
        return TARGETS[isas[0]]
    if wanted not in isas:
        raise KernelError(
            f"POLLARD_TARGET={wanted}",
            f"an instruction set of this CPU ({', '.join(isas) or 'none known'})",
            "Unset POLLARD_TARGET, or use 'reference' to run on plain torch.",
        )
    return TARGETS[wanted]


@cache
def caches() -> Caches:
    """Cache sizes of core 0 as the kernel reports them, with cautious figures where it does not."""
    sizes = {"1": 32 << 10, "2": 512 << 10, "3": 8 << 20}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
            text = (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and level in sizes:
            sizes[level] = int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0)
    return Caches(sizes["1"], sizes["2"], sizes["3"])
