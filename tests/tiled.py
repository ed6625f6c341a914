"""The tiles of AMX in the words of Intel's manual, for CPUs that lack them or hide them."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code import jit
from pollard.kernels.code.emit import amx
from pollard.kernels.code.flow import Flow
from pollard.kernels.code.simd import vector
from pollard.kernels.products import generated

TILES, WORDS = 8, amx.LINE // 4
_made = {}  # kernels in these words, for all tests


class Words:
    """The tiles of one function: memory, and the shapes that it was given."""

    def __init__(self, code):
        self.code, self.memory, self.shapes = code, [code.room(amx.TILE, align=amx.LINE) for _ in range(TILES)], None

    def ldtilecfg(self, place):
        layout = place.operands[0].initializer.constant
        assert layout[0] == 1, "the palette of eight tiles"
        self.shapes = [(layout[48 + tile], layout[16 + 2 * tile]) for tile in range(TILES)]
        assert all(rows <= amx.ROWS and width <= amx.LINE and (rows > 0) == (width > 0) for rows, width in self.shapes)

    def tilerelease(self):
        self.shapes = None

    def tilezero(self, tile):
        assert self.shapes
        for row in range(amx.ROWS):
            self.code.store(self.code.zero(WORDS), self.code.offset(self.memory[tile.constant], row * amx.LINE))

    def tileloadd64(self, tile, pointer, stride):
        self._copied(tile.constant, pointer, stride, back=False)

    def tilestored64(self, tile, pointer, stride):
        self._copied(tile.constant, pointer, stride, back=True)

    def _copied(self, tile, pointer, stride, *, back):
        code, (rows, width) = self.code, self.shapes[tile]
        with code.loop(0, rows) as row:
            own = code.offset(self.memory[tile], code.mul(row.index, amx.LINE))
            other = code.offset(pointer, code.mul(row.index, stride))
            source, target = (own, other) if back else (other, own)
            code.store(code.load(source, width // 4), target)

    def tdpbf16ps(self, sums, left, right):
        code = self.code
        (rows, _), (_, deep), (pairs, width) = (self.shapes[each.constant] for each in (sums, left, right))
        assert deep // 4 == pairs > 0
        assert self.shapes[sums.constant] == (self.shapes[left.constant][0], width)
        lanes = width // 4
        total, weights, operand = (self.memory[each.constant] for each in (sums, left, right))
        with code.loop(0, rows) as row:
            place = code.mul(row.index, amx.LINE)
            with code.loop(0, pairs, carried=[code.zero(lanes)] * 2) as pair:
                weight = code.splat_word(code.offset(code.offset(weights, place), code.mul(pair.index, 4)), lanes)
                own = code.load(code.offset(operand, code.mul(pair.index, amx.LINE)), lanes)
                words = code.ir.bitcast(own, weight.type)
                pair.carry(
                    [
                        code.fma(half(code, weight, lanes), half(code, words, lanes), chain)
                        for half, chain in zip((lower, upper), pair.carried, strict=True)
                    ]
                )
            here = code.offset(total, place)
            code.store(code.ir.fadd(code.load(here, lanes), code.ir.fadd(*pair.carried)), here)


def lower(code, words, lanes):
    return code.ir.bitcast(code.ir.shl(words, ir.Constant(words.type, [16] * lanes)), vector(lanes))


def upper(code, words, lanes):
    return code.ir.bitcast(code.ir.and_(words, ir.Constant(words.type, [-(1 << 16)] * lanes)), vector(lanes))


def pretend(patch):
    """Take this CPU, which has AVX-512, for one that has tiles too; `patch` undoes it."""
    usual, known = Flow.call, {}

    def call(code, name, result, arguments, **options):
        action = name.removeprefix("llvm.x86.")
        if name == action or not hasattr(Words, action):
            return usual(code, name, result, arguments, **options)
        words = known.setdefault(id(code), (code, None))[1] or Words(code)
        known[id(code)] = code, words
        return getattr(words, action)(*arguments)

    patch.setattr(Flow, "call", call)
    patch.setattr(jit, "_features", lambda spec: jit.FEATURES[spec.isa])
    patch.setattr(jit, "_loaded", _made)
    patch.setattr(jit, "_path", lambda _: None)
    patch.setattr(generated, "without_tiles", lambda: "")
