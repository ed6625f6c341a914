"""Values laid out in the order in which a kernel reads them, as float32 or as they are."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import LINE, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

ORDER = ("values", "ordered", "permutation", "bounds", "PASSES")


def order(spec: KernelSpec) -> ir.Module:
    """The module that takes values in the order of a permutation; a unit of work is a run of them."""
    values = NUMBERS[spec.values]

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with code.loop(*run_of_groups(code, arguments, *work)) as each:
            source = values.at(code, arguments["values"], code.index_at(arguments["permutation"], each.index))
            # By columns, as many values are taken from each row in turn as it has: its next line is soon needed.
            code.prefetch(code.offset(source, LINE))
            if spec.numbers == "float32":
                code.store_one(values.one(code, source), code.floats(arguments["ordered"], each.index))
            else:
                values.copy_one(code, source, values.at(code, arguments["ordered"], each.index))

    return kernel_module(ORDER, unit, x86=spec.isa != "neon")
