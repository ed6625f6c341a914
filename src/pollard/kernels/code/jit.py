"""A kernel spec to a function that can be called: the only module that starts a compiler.

Machine code is kept on disk, keyed by everything it depends on, so that a second process compiles nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite import __version__ as llvmlite_version
from llvmlite import binding

from pollard.errors import KernelError
from pollard.kernels.code import disk, openmp
from pollard.kernels.code.emit import emit
from pollard.kernels.code.once import one_at_a_time
from pollard.kernels.code.spec import AMX, KernelSpec
from pollard.kernels.code.target import FEATURES, PAIRS, TILES, TRIPLES, WORDS, host_isas

Entry = Any  # a ctypes function: (arguments as bytes, units, threads)

MOST = 1 << 24  # bytes: the largest kernel has some ten thousand


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled kernel: its entry, and the engine that keeps its code alive."""

    spec: KernelSpec
    entry: Entry
    engine: Any


# Kept for the life of the process: where code of a kernel may still be running, its memory must not be given back.
_loaded: dict[KernelSpec, Kernel] = {}
# What LLVM refused, and why: it would refuse it again at each call, after as long.
_refused: dict[KernelSpec, tuple[str, str, str]] = {}


def load(spec: KernelSpec) -> Kernel:
    """The kernel of `spec`, the same one for all threads; raises KernelError if LLVM refuses it, as it did the first time.

    It is compiled for this CPU, or read from the cache, by the thread that asks first; the others wait for it.
    """
    return _loaded.get(spec) or _load(spec)


@one_at_a_time
def _load(spec: KernelSpec) -> Kernel:
    if spec in _refused:
        # Anew: an error that is raised again would keep the frames of all who met it, and their tensors.
        got, expected, fix = _refused[spec]
        raise KernelError(got, expected, fix)
    if spec not in _loaded:
        try:
            _loaded[spec] = _made(spec)
        except KernelError as refused:
            _refused[spec] = refused.got, refused.expected, refused.fix
            raise
    return _loaded[spec]


def _made(spec: KernelSpec) -> Kernel:
    try:
        _initialise()
        openmp.publish(binding)
        code = _cached(spec) or _store(spec, _compile(spec))
        # The engine takes ownership of the machine it is given: a shared one would be freed twice.
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine(spec))
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
    except RuntimeError as refused:
        raise KernelError(
            f"an LLVM error for {spec}: {refused}",
            "IR that LLVM compiles for this CPU",
            "Set POLLARD_TARGET=reference to run on plain torch, and report this with the output of `pollard doctor`.",
        ) from refused
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int32)
    return Kernel(spec, kind(engine.get_function_address("parallel")), engine)


def optimised_ir(spec: KernelSpec) -> str:
    """The LLVM IR of `spec` after optimisation, for people to read."""
    return str(_optimised(spec, _machine(spec)))


def assembly(spec: KernelSpec) -> str:
    """The assembly of `spec`, whose instruction set need not be this machine's."""
    machine = _machine(spec)
    return str(machine.emit_assembly(_optimised(spec, machine)))


@cache
def _initialise() -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()


def _machine(spec: KernelSpec) -> Any:
    _initialise()
    native = spec.isa in host_isas()
    triple = binding.get_process_triple() if native else TRIPLES[spec.isa]
    return binding.Target.from_triple(triple).create_target_machine(
        cpu=_cpu(spec.isa), features=_features(spec), opt=2, jit=native
    )


def _features(spec: KernelSpec) -> str:
    # The name of a CPU stands for all that it has: a virtual machine may hide some of it, and need not run on what it names.
    own = f"{binding.get_host_cpu_features().flatten()}," if _cpu(spec.isa) else ""
    return ",".join([f"{own}{FEATURES[spec.isa]}", *(f"+{each}" for each in _beyond(spec))])


def _beyond(spec: KernelSpec) -> tuple[str, ...]:
    # What a kernel wants that not every CPU of its instruction set has.
    if spec.operation in AMX:
        return TILES
    if not spec.pairs:
        return ()
    return (PAIRS, WORDS) if spec.operation == "bitmap" else (PAIRS,)


def _cpu(isa: str) -> str:
    # A narrower instruction set than the best is for another CPU: nothing of this one may leak in.
    return str(binding.get_host_cpu_name()) if host_isas()[:1] == (isa,) else ""


def _optimised(spec: KernelSpec, machine: Any) -> Any:
    module = emit(spec)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    # The kernels are vectors already: what these would find is not worth the time they take.
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(parsed, passes)
    return parsed


def _compile(spec: KernelSpec) -> bytes:
    machine = _machine(spec)
    return bytes(machine.emit_object(_optimised(spec, machine)))


@cache
def _toolchain() -> str:
    # Everything but the spec that machine code depends on: the generators' own source included.
    digest = hashlib.sha256(f"{llvmlite_version} {binding.llvm_version_info} {openmp.library() is None}".encode())
    for path in sorted(Path(__file__).parent.glob("**/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _path(spec: KernelSpec) -> Path | None:
    folder = disk.folder("kernels")
    key = hashlib.sha256(f"{_toolchain()} {_cpu(spec.isa)} {_features(spec)} {spec}".encode()).hexdigest()
    return None if folder is None else folder / f"{key[:32]}.o"


def _cached(spec: KernelSpec) -> bytes | None:
    # Content is checked against its own digest: a damaged file must not be run.
    path = _path(spec)
    content = None if path is None else disk.read(path, MOST)
    if content is None:
        return None
    code, digest = content[:-32], content[-32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _store(spec: KernelSpec, code: bytes) -> bytes:
    path = _path(spec)
    if path is not None:
        disk.write(path, code + hashlib.sha256(code).digest())
    return code
