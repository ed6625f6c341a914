"""``Y = W X`` for a few samples, or one where grains have a few rows: a vector holds several weights, each for all samples, which alone would leave most of its lanes empty."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from pollard.kernels.code.emit.abreast import lay_abreast, width
from pollard.kernels.code.emit.activations import activated
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import Tile, ask_for_columns, ask_for_values, each_tile, run_of_groups
from pollard.kernels.code.simd import I32, I64, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# The samples are laid out abreast at `laid`, unless that is nowhere: then x lies so already.
ARGUMENTS = (
    "values", "x", "laid", "y", "bias", "resting", "tiles", "columns", "bounds", "PASSES", "TILES", "STRIDE", "END", "IN", "LDX", "LDY",
)  # fmt: skip
SUMS = 4  # vectors that run side by side, at least: an addition takes about as long as the loads of so many
LONG = 8  # grains of a turn: what is left of fewer is soon added
WRITTEN = 4  # turns of a grain whose code is written out, at most


def skinny(spec: KernelSpec) -> ir.Module:
    """The module of the kernel; a unit of work is a run of row groups.

    Kept columns of a group are taken as many at a time as fill `SUMS` vectors or more, each of which has sums of its own; then as many as
    fill one, or the rows of one column, and the last few by themselves. All sums are added in the end, so that their order is that of shapes alone. Where the
    samples are more than the nearest cache holds, a tile of columns comes after the other, and between them sums are at rest.
    """

    def before(code: Code, arguments: Arguments) -> None:
        with code.when(code.ir.not_(_nowhere(code, arguments["laid"]))):
            lay_abreast(code, spec, arguments)

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        laid = arguments["laid"]
        samples = code.ir.select(_nowhere(code, laid), arguments["x"], laid)

        def row_group(tile: Tile, group: Value, grains: tuple[Value, Value]) -> None:
            _Group(code, spec, arguments, samples, group).run(tile, grains)

        each_tile(code, spec, arguments, run_of_groups(code, arguments, *work), row_group)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon", before=before)


def _nowhere(code: Code, pointer: Value) -> Value:
    return code.equal(code.ir.ptrtoint(pointer, I64), 0)


class _Group:
    """A row group: its sums, column by column and row by row in vectors of `lanes`, and the walk over its columns."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, samples: Value, group: Value) -> None:
        self.code, self.spec, self.arguments, self.x, self.group = code, spec, arguments, samples, group
        self.values, self.numbers = NUMBERS[spec.values], NUMBERS[spec.numbers]
        self.lanes, self.width = TARGETS[spec.isa].lanes, width(spec.abreast)
        self.fold = self.lanes // self.width  # weights of a vector
        self.tall = max(1, spec.rows // self.fold)  # vectors of the rows of a column, or of as many columns as fill one
        self.vectors = max(self.width, SUMS, self.tall)  # of a turn
        self.few = max(1, self.fold // spec.rows)  # columns of `tall` vectors
        self.many = self.vectors * self.fold // spec.rows  # columns of a turn
        self.whole = self.fold <= spec.rows  # whether the rows of a column fill vectors

    def run(self, tile: Tile, grains: tuple[Value, Value]) -> None:
        """Sum the grains of a tile, and store what that is with those before."""
        code, (start, end), sums = self.code, grains, self._fresh()
        for step in self._steps():
            with code.loop(start, code.sub(end, step - 1), step, sums) as some:
                self._ask(some.index, step)
                some.carry(self._grains(some.index, step, some.carried))
            start, sums = some.index, some.carried
            if self.spec.tiled and step >= LONG:
                start, sums = self._last(step, (start, end), grains[0], sums)
        total = self._total(sums)
        if not self.spec.tiled:
            self._finish(total)
            return
        total = self._with_those_before(tile, total)
        with code.when(tile.is_last):
            biases = self._bias()
            self._finish([code.ir.fadd(*pair) for pair in zip(total, biases, strict=True)])

    def _last(self, step: int, left: tuple[Value, Value], begin: Value, sums: list[Value]) -> tuple[Value, list[Value]]:
        """What is `left` of a row that fills a turn: its last turn again, but for what was added already. Loops that end soon surprise."""
        code, (start, end) = self.code, left
        first = code.sub(end, step)
        again = code.ir.and_(code.less(start, end), code.ir.not_(code.less(first, begin)))
        with code.loop(0, code.one_if(again), carried=sums) as once:
            made = self._grains(first, step, once.carried)
            done = code.splat_index(code.mul(code.sub(start, first), self.spec.columns), self.lanes)
            pairs = enumerate(zip(made, once.carried, strict=True))
            once.carry([self._unless(done, vector, pair) for vector, pair in pairs])
        return code.ir.select(again, end, start), once.carried

    def _unless(self, done: Value, vector: int, sums: tuple[Value, Value]) -> Value:
        """The first of two `sums`, or the second where a column is among those `done`."""
        made, before = sums
        if vector >= self.vectors:
            return before  # that of single columns
        places = [(vector * self.fold + lane // self.width) // self.spec.rows for lane in range(self.lanes)]
        new = self.code.ir.icmp_signed(">=", ir.Constant(done.type, places), done)
        return self.code.ir.select(new, made, before)

    def _with_those_before(self, tile: Tile, total: list[Value]) -> list[Value]:
        """The sums of all tiles so far, which rest until the next."""
        code, lanes = self.code, self.code.lanes_of(total[0])
        place = code.floats(self.arguments["resting"], code.mul(self.group, self.spec.rows * self.width))
        found = []
        for vector, own in enumerate(total):
            at = code.floats(place, vector * lanes)
            before = code.ir.select(tile.is_first, code.zero(lanes), code.load(at, lanes))
            found.append(code.ir.fadd(before, own))
            code.store(found[-1], at)
        return found

    def _finish(self, total: list[Value]) -> None:
        found = activated(self.code, self.spec.activation, total, self.spec.numbers)
        self._store([self.numbers.rounded(self.code, each) for each in found])

    def _steps(self) -> list[int]:
        # Grains at a time, ever fewer: as many as fill a turn, as fill its first vectors, one.
        whole = [columns // self.spec.columns for columns in (self.many, self.few) if columns % self.spec.columns == 0]
        return sorted({*whole, 1}, reverse=True)

    def _fresh(self) -> list[Value]:
        """What sums start from: those of the vectors of a turn, then that of single columns, where they are no whole vector; the first of a row from
        its bias.
        """
        rest = [self.code.zero(self.lanes)] * (self.vectors - self.tall)
        first = self._nothing() if self.spec.tiled else self._bias()
        if self.whole:
            return [*first, *rest]
        return [*[self.code.zero(self.lanes)] * self.tall, *rest, *first]

    def _nothing(self) -> list[Value]:
        return [self.code.zero(min(self.spec.rows, self.fold) * self.width)] * self.tall

    def _bias(self) -> list[Value]:
        code, spec, rows = self.code, self.spec, min(self.spec.rows, self.fold)
        if not spec.bias:
            return self._nothing()
        first = self.values.at(code, self.arguments["bias"], code.mul(self.group, spec.rows))
        starts = [self.values.at(code, first, vector * rows) for vector in range(self.tall)]
        return [self._spread(self.values.few(code, start, rows), range(rows)) for start in starts]

    def _ask(self, first: Value, grains: int) -> None:
        # Only in whole turns: what is left is of a line that is asked for already.
        if grains * self.spec.columns >= self.many:
            ask_for_values(self.code, self.spec, self.arguments, first, grains)
            ask_for_columns(self.code, self.spec, self.arguments, first, grains)

    def _grains(self, first: Value, grains: int, sums: list[Value]) -> list[Value]:
        """`sums` and the products of `grains` from the `first` on."""
        code, columns, done = self.code, self.spec.columns, 0
        inputs, kept = self._inputs(first, grains), code.mul(first, columns)
        if columns > WRITTEN * self.many:  # of one grain
            done = columns - columns % self.many
            with code.loop(0, done, self.many, sums) as turn:
                start = code.floats(inputs[0], code.mul(turn.index, self.width))
                some = self._side_by_side(start, self.many)
                turn.carry(self._columns(code.add(kept, turn.index), some, turn.carried))
            sums = turn.carried
        places = [place for start in inputs for place in self._side_by_side(start, columns)]
        for count in (self.many, self.few, 1):
            while len(places) - done >= count:
                sums = self._columns(code.add(kept, done), places[done : done + count], sums)
                done += count
        return sums

    def _inputs(self, first: Value, grains: int) -> list[Value]:
        """Where the samples of the columns of each of so many grains begin."""
        code, spec, columns = self.code, self.spec, self.arguments["columns"]
        if grains * spec.index % 8:
            indices = [code.index_at(columns, code.add(first, each), spec.index) for each in range(grains)]
        else:
            indices = code.each_index(columns, first, grains, spec.index)
        return [code.floats(self.x, code.mul(index, spec.columns * self.width)) for index in indices]

    def _side_by_side(self, first: Value, count: int) -> list[Value]:
        return [self.code.floats(first, column * self.width) for column in range(count)]

    def _columns(self, kept: Value, places: Sequence[Value], sums: list[Value]) -> list[Value]:
        """`sums` and the products of the columns whose samples lie at `places`, the first of which is number `kept` of all: those of a turn, of
        its first vectors, or one.
        """
        code, weights, count = self.code, self._weight(kept), len(places) * self.spec.rows
        if count < self.fold:
            weight = self._spread(self.values.few(code, weights, count), range(count))
            return [*sums[:-1], code.fma(weight, self._features(places, range(count)), sums[-1])]
        together, following = min(count, self.lanes), list(sums)
        for first in range(0, count, together):
            several = self.values.few(code, self.values.at(code, weights, first), together)
            for start in range(0, together, self.fold):
                weight = self._spread(several, range(start, start + self.fold))
                features = self._features(places, range(first + start, first + start + self.fold))
                vector = (first + start) // self.fold
                following[vector] = code.fma(weight, features, sums[vector])
        return following

    def _features(self, places: Sequence[Value], weights: range) -> Value:
        """What these weights of the columns at `places` are multiplied with, column by column."""
        code, rows = self.code, self.spec.rows
        columns = [weight // rows for weight in weights]
        found = [code.load(places[c], self.width) for c in range(columns[0], columns[-1] + 1)]
        joined = code.joined(found) if self.width > 1 else code.side_by_side(found)
        lanes = [(column - columns[0]) * self.width + sample for column in columns for sample in range(self.width)]
        if code.lanes_of(joined) == 1:
            return code.splat(joined, len(lanes))
        return joined if lanes == list(range(code.lanes_of(joined))) else code.shuffle(joined, joined, lanes)

    def _spread(self, several: Value, places: range) -> Value:
        """The numbers of `several` at `places`, each as often as there are samples side by side."""
        if self.code.lanes_of(several) == 1:
            return self.code.splat(several, self.width)
        return self.code.shuffle(several, several, [place for place in places for _ in range(self.width)])

    def _weight(self, kept: Value) -> Value:
        return self.values.at(self.code, self.arguments["values"], self.code.mul(kept, self.spec.rows))

    def _total(self, sums: list[Value]) -> list[Value]:
        """The sums of the rows, `fold` of them a vector, or all of them in one."""
        code, rows = self.code, self.spec.rows
        total = sums[: self.tall]
        for first in range(self.tall, self.vectors, self.tall):
            total = [code.ir.fadd(*pair) for pair in zip(total, sums[first : first + self.tall], strict=True)]
        if self.whole:
            return total
        return [code.ir.fadd(sums[-1], code.folded(total[0], rows * self.width))]

    def _store(self, total: list[Value]) -> None:
        code, spec, apart = self.code, self.spec, self.arguments["LDY"]
        first = code.mul(self.group, spec.rows)
        # Two vectors at a time, where there are two: rows of the result are written in longer runs.
        pairs = [(each, total[min(place + 1, len(total) - 1)]) for place, each in enumerate(total)][::2]
        rows = spec.rows // len(pairs)
        for each, pair in enumerate(pairs):
            start = code.add(first, each * rows)
            if spec.batch_first:
                for sample in range(spec.abreast):
                    lanes = range(sample, rows * self.width, self.width)
                    self._put(pair, lanes, code.add(code.mul(apart, sample), start))
            else:
                for row in range(rows):
                    lanes = range(row * self.width, row * self.width + spec.abreast)
                    self._put(pair, lanes, code.mul(code.add(start, row), apart))

    def _put(self, pair: tuple[Value, Value], lanes: range, place: Value) -> None:
        code = self.code
        chosen = code.shuffle(*pair, lanes) if len(lanes) > 1 else code.ir.extract_element(pair[0], I32(lanes[0]))
        self.numbers.put_few(code, chosen, self.numbers.at(code, self.arguments["y"], place))


__all__ = ["ARGUMENTS", "skinny"]
