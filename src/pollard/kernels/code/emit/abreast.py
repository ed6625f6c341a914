"""A few samples side by side, widened to float32: of each feature all of them, then zeros up to a power of two."""

from __future__ import annotations

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS


def width(samples: int) -> int:
    """Numbers that so many samples take side by side: a power of two.

    >>> width(2), width(3), width(8)
    (2, 4, 8)
    """
    return 1 << (samples - 1).bit_length()


def lay_abreast(code: Code, spec: KernelSpec, arguments: Arguments) -> None:
    """Lay ``spec.abreast`` samples of IN features out at `laid`, which x holds, LDX apart: features are, or where it has `packed`, samples."""
    (_transpose if spec.packed else _copy)(code, spec, arguments)


def _copy(code: Code, spec: KernelSpec, arguments: Arguments) -> None:
    numbers, wide = NUMBERS[spec.numbers], width(spec.abreast)
    with code.loop(0, arguments["IN"]) as feature:
        row = numbers.at(code, arguments["x"], code.mul(feature.index, arguments["LDX"]))
        found = code.padded(numbers.few(code, row, spec.abreast), wide)
        code.store(found, code.floats(arguments["laid"], code.mul(feature.index, wide)))


def _transpose(code: Code, spec: KernelSpec, arguments: Arguments) -> None:
    numbers, wide, first = NUMBERS[spec.numbers], width(spec.abreast), code.integer(0)
    rows = [numbers.at(code, arguments["x"], code.mul(arguments["LDX"], sample)) for sample in range(spec.abreast)]

    def lay(start: Value, lanes: int) -> None:
        found = [numbers.few(code, numbers.at(code, row, start), lanes) for row in rows]
        found += [code.zero(lanes)] * (wide - len(found))
        for place, some in enumerate(_interleaved(code, found) if lanes > 1 else found):
            code.store(some, code.floats(arguments["laid"], code.add(code.mul(start, wide), place * lanes)))

    for lanes in (TARGETS[spec.isa].lanes, 1):
        with code.loop(first, code.sub(arguments["IN"], lanes - 1), lanes) as several:
            lay(several.index, lanes)
        first = several.index


def _interleaved(code: Code, rows: list[Value]) -> list[Value]:
    """The first lanes of all rows, a power of two of them, then their second lanes, and so on."""
    if len(rows) == 1:
        return rows
    lanes = code.lanes_of(rows[0])
    pairs = list(zip(_interleaved(code, rows[::2]), _interleaved(code, rows[1::2]), strict=True))
    halves = [[start + lane + row for lane in range(lanes // 2) for row in (0, lanes)] for start in (0, lanes // 2)]
    return [code.shuffle(*pair, half) for pair in pairs for half in halves]


__all__ = ["lay_abreast", "width"]
