"""``y = W x`` for one sample where N of every M weights of a row are kept: places are read as a few bits each, and numbers are
picked from vectors of x, not looked up.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.matvec import LoneRow
from pollard.kernels.code.emit.tiles import ask_for, run_of_groups
from pollard.kernels.code.simd import I32, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target

# `bits` holds the place of each kept weight within its run of M, log2(M) bits each from the lowest on, rows BYTES apart.
# KEPT weights of a row are kept.
ARGUMENTS = ("values", "x", "y", "bias", "columns", "bits", "bounds", "PASSES", "KEPT", "BYTES")
GROUP = 8  # kept weights whose places take whole bytes
WORD = 32  # bits that are read at once
LENGTHS = (4, 8)  # of runs
SUMS = 2  # that run side by side
PAD = 4  # bytes after the last row that may be read with it


def serves(target: Target, n: int, m: int) -> bool:
    """Whether the kernel is there for `n` of every `m`: as many kept weights as a vector has lanes fill whole vectors of x."""
    return target.isa != "neon" and m in LENGTHS and m % n == 0


def n_of_m(spec: KernelSpec) -> ir.Module:
    """The module of the kernel; a unit of work is a run of rows."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            _Row(code, spec, arguments, row.index).run()

    return kernel_module(ARGUMENTS, unit, x86=True)


class _Row(LoneRow):
    """One row: as many kept weights as a vector has lanes at a time, the last few by themselves."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, row: Value) -> None:
        super().__init__(code, spec, arguments, row)
        self.start = code.mul(row, arguments["KEPT"])
        self.width = spec.m.bit_length() - 1

    def run(self) -> None:
        """Sum and store."""
        code, lanes, kept = self.code, self.lanes, self.arguments["KEPT"]
        step = SUMS * lanes
        with code.loop(0, code.sub(kept, step - 1), step, [code.zero(lanes)] * SUMS) as several:
            places = [code.add(several.index, vector * lanes) for vector in range(SUMS)]
            ask_for(code, self._weight(several.index), step * self.values.bytes)
            several.carry([self._vector(*pair) for pair in zip(places, several.carried, strict=True)])
        with code.loop(several.index, code.sub(kept, lanes - 1), lanes, [code.ir.fadd(*several.carried)]) as whole:
            whole.carry([self._vector(whole.index, whole.carried[0])])
        with code.loop(whole.index, kept, carried=[self.bias()]) as single:
            single.carry([self._one(single.index, single.carried[0])])
        self.finish(single.carried[0], whole.carried[0])

    def _vector(self, first: Value, sums: Value) -> Value:
        """The kept weights of a row from `first` on, as many as there are lanes."""
        code, lanes, ratio = self.code, self.lanes, self.spec.m // self.spec.n
        x = code.floats(self.arguments["x"], code.mul(first, ratio))
        features = [code.load(code.floats(x, vector * lanes), lanes) for vector in range(ratio)]
        picked = self._picked(features, self._places(first))
        weights = self.values.few(code, self._weight(first), lanes)
        return code.fma(weights, picked, sums)

    def _picked(self, features: list[Value], places: Value) -> Value:
        """Of each vector of `features` as many numbers as its share of the lanes, those at `places`: first of the first vector, and so on."""
        code, lanes, ratio = self.code, self.lanes, len(features)
        if self.spec.isa == "avx512":
            # Of two vectors at once: the place's fifth bit says of which.
            second = ir.Constant(places.type, [lane * ratio // lanes % 2 * lanes for lane in range(lanes)])
            places = code.ir.or_(places, second)
            found = [code.permuted_pair(*pair, places) for pair in zip(features[::2], features[1::2], strict=True)]
        else:
            found = [code.permuted(each, places, self.spec.isa) for each in features]
        picked = found[0]
        for part, other in enumerate(found[1:], 1):
            own = [lane * len(found) // lanes >= part for lane in range(lanes)]
            picked = code.ir.select(code.constant_mask(own), other, picked)
        return picked

    def _places(self, first: Value) -> Value:
        """For each lane, the lane of its vector of x."""
        code, spec, lanes = self.code, self.spec, self.lanes
        kind = ir.VectorType(I32, lanes)
        row = code.offset(self.arguments["bits"], code.mul(self.row, self.arguments["BYTES"]))
        at = code.offset(row, code.ir.sdiv(code.mul(first, self.width), code.integer(8)))
        # Lanes whose places a word has; those of the next begin with a whole byte.
        most = WORD // self.width // GROUP * GROUP
        words = code.splat_word(at, lanes)
        for start in range(most, lanes, most):
            own = code.constant_mask([lane >= start for lane in range(lanes)])
            words = code.ir.select(own, code.splat_word(code.offset(at, start * self.width // 8), lanes), words)
        shifts = ir.Constant(kind, [self.width * (lane % most) for lane in range(lanes)])
        local = code.ir.and_(code.ir.lshr(words, shifts), ir.Constant(kind, [spec.m - 1] * lanes))
        runs = [lane // spec.n % (lanes // spec.m) * spec.m for lane in range(lanes)]
        return code.ir.or_(local, ir.Constant(kind, runs))

    def _one(self, place: Value, total: Value) -> Value:
        code = self.code
        column = code.index_at(self.arguments["columns"], code.add(self.start, place), self.spec.index)
        feature = code.load(code.floats(self.arguments["x"], column), 1)
        return code.fma(self.values.one(code, self._weight(place)), feature, total)

    def _weight(self, place: Value) -> Value:
        return self.weight(self.code.add(self.start, place))


__all__ = ["ARGUMENTS", "LENGTHS", "PAD", "n_of_m", "serves"]
