"""What every kernel shares: its arguments, its units of work, and its way on to torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from pollard.kernels.code import openmp
from pollard.kernels.code.emit import amx
from pollard.kernels.code.simd import I32, I64, POINTER, VOID, Code, Value

FLUSH_SUBNORMALS = 0x8040  # flush-to-zero and denormals-are-zero of MXCSR


class Arguments:
    """The kernel's arguments, by name, read from one array of 64-bit slots."""

    def __init__(self, code: Code, slots: Value, names: Sequence[str]) -> None:
        self._values = {}
        for position, name in enumerate(names):
            raw = code.ir.load(code.ir.bitcast(code.offset(slots, 8 * position), I64.as_pointer()))
            self._values[name] = code.ir.inttoptr(raw, POINTER) if name.islower() else raw

    def __getitem__(self, name: str) -> Value:
        return self._values[name]


Unit = Callable[[Code, Arguments, tuple[Value, Value]], None]
Before = Callable[[Code, Arguments], None]


def kernel_module(
    names: Sequence[str], unit: Unit, *, x86: bool, tiles: amx.Shapes = (), before: Before | None = None
) -> ir.Module:
    """A module whose ``parallel(arguments, units, threads)`` runs ``unit(code, arguments, (index, turn))`` for each index.

    Lower-case names are pointers, upper-case names are integers. All units of a thread go through turn 0, then through
    turn 1, and so on to PASSES: a turn is a block of rows whose grains stay in cache for all panels of the batch. Units
    are independent and each is run by one thread in one order, so results do not depend on the number of threads.
    tiles: the shapes of those of AMX, where there are any. before: what the calling thread does before any of them.
    """
    module = ir.Module("pollard")
    work = Code(module, "units", [POINTER, I64, I64])
    slots, first, last = work.function.args
    mode = _flush_subnormals(work) if x86 else None
    arguments = Arguments(work, slots, names)
    if tiles:
        amx.configure(work, tiles)
    with work.loop(0, arguments["PASSES"]) as turn, work.loop(first, last) as each:
        unit(work, arguments, (each.index, turn.index))
    if tiles:
        amx.release(work)
    if mode is not None:
        work.call("llvm.x86.sse.ldmxcsr", VOID, [mode])
    work.finish()
    _parallel(module, work.function, names, before)
    return module


def _flush_subnormals(code: Code) -> Value:
    # Subnormal values slow a core about eightfold; the caller's mode is put back at the end.
    saved = code.ir.bitcast(code.ir.alloca(I32), POINTER)
    wanted = code.ir.bitcast(code.ir.alloca(I32), POINTER)
    code.call("llvm.x86.sse.stmxcsr", VOID, [saved])
    mode = code.ir.load(code.ir.bitcast(saved, I32.as_pointer()))
    code.ir.store(code.ir.or_(mode, I32(FLUSH_SUBNORMALS)), code.ir.bitcast(wanted, I32.as_pointer()))
    code.call("llvm.x86.sse.ldmxcsr", VOID, [wanted])
    return saved


def _parallel(module: ir.Module, work: ir.Function, names: Sequence[str], before: Before | None) -> None:
    entry = Code(module, "parallel", [POINTER, I64, I32])
    slots, units, threads = entry.function.args
    if before is not None:
        before(entry, Arguments(entry, slots, names))
    if openmp.library() is None:
        entry.ir.call(work, [slots, I64(0), units])
        entry.finish()
        return
    body = _share(module, work)
    with entry.ir.if_else(entry.ir.icmp_signed("<=", threads, I32(1))) as (alone, together):
        with alone:
            entry.ir.call(work, [slots, I64(0), units])
        with together:
            pair = entry.ir.bitcast(entry.ir.alloca(I64, 2), POINTER)
            entry.ir.store(entry.ir.ptrtoint(slots, I64), entry.ir.bitcast(pair, I64.as_pointer()))
            entry.ir.store(units, entry.ir.bitcast(entry.offset(pair, 8), I64.as_pointer()))
            entry.call("GOMP_parallel", VOID, [entry.ir.bitcast(body, POINTER), pair, threads, I32(0)])
    entry.finish()


def _share(module: ir.Module, work: ir.Function) -> ir.Function:
    # Runs on each thread of the pool: an equal share of the units.
    code = Code(module, "share", [POINTER])
    pair = code.function.args[0]
    slots = code.ir.inttoptr(code.ir.load(code.ir.bitcast(pair, I64.as_pointer())), POINTER)
    units = code.ir.load(code.ir.bitcast(code.offset(pair, 8), I64.as_pointer()))
    me = code.ir.sext(code.call("omp_get_thread_num", I32, []), I64)
    all_threads = code.ir.sext(code.call("omp_get_num_threads", I32, []), I64)
    first = code.ir.sdiv(code.mul(me, units), all_threads)
    last = code.ir.sdiv(code.mul(code.add(me, 1), units), all_threads)
    code.ir.call(work, [slots, first, last])
    code.finish()
    return code.function
