"""One product to be computed: the kernels that could compute it, and the one that is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pollard.formats.indices import index_dtype
from pollard.formats.topology import Topology
from pollard.kernels.code.emit.abreast import width as width_of
from pollard.kernels.code.emit.amx_gather import MOST as TILED
from pollard.kernels.code.emit.numbers import NUMBERS, Numbers
from pollard.kernels.code.emit.panels import Panels
from pollard.kernels.code.emit.sddmm import STEP as BATCH_STEP
from pollard.kernels.code.once import one_at_a_time
from pollard.kernels.code.spec import AMX, KernelSpec
from pollard.kernels.code.target import Target, adds_pairs, expands_words
from pollard.kernels.products import tuning
from pollard.kernels.products.derived import forget, widths
from pollard.kernels.products.operand import Operand
from pollard.kernels.products.tuning import Build, Choice, Decision
from pollard.kernels.products.workspace import trim

# Vectors a panel, best guess first: they share the registers with the rows of a block.
VECTORS: dict[str, dict[int, tuple[int, ...]]] = {
    "avx512": {1: (8, 4, 12), 2: (8, 4), 4: (6, 4), 8: (3, 2)},
    "avx2": {1: (8, 6, 12, 4), 2: (5, 4), 4: (3, 2)},
    "neon": {1: (16, 8), 2: (8, 4), 4: (6, 4)},
}

DOTS = ("sddmm", "amx_sddmm")
FEW_SAMPLES = ("matvec", "n_of_m", "skinny", "bitmap")

# Registers for what is neither a sum nor held.
SPARE = 2

# Sums that keep a core busy: an addition takes about as long as the loads of so many.
CHAINS = 4

# Bytes of a few samples that stay in L1 while W comes by, grains of a row group for which to come back to it, and its rows at most. None is this CPU's own: bits depend on them.
TILE, RUN, TALL = 32 << 10, 48, 2

# Vector operations, some 20 us, that are worth waking a thread for: on a busy machine it may come milliseconds late.
SHARE = 1 << 15


def in_pairs(numbers: str, values: str) -> bool:
    """Whether single weights that are told by bits are multiplied two at a time."""
    return numbers == values == "bfloat16" and expands_words()


@dataclass(frozen=True, slots=True)
class Product:
    """One product to be computed: what is common to choosing, tuning and running a kernel for it."""

    operation: str
    topology: Topology
    operand: Operand
    target: Target
    threads: int
    values: str  # their dtype
    rows: bool = False  # whether rows of the result are contiguous, and not its features

    @classmethod
    def of(
        cls, operation: str, topology: Topology, operand: Operand, target: Target, values: str, *, rows: bool = False
    ) -> Product:
        """The product on as many of torch's threads as it has work for; one sample lies both ways."""
        work = (topology.nnz + operand.features) * -(-operand.batch // target.lanes)
        threads = min(torch.get_num_threads(), max(1, work // SHARE))
        return cls(operation, topology, operand, target, threads, values, rows and operand.batch > 1)

    @property
    def batch(self) -> int:
        """Columns of the dense operand."""
        return self.operand.batch

    @property
    def numbers(self) -> Numbers:
        """How the numbers of the dense operands lie in memory."""
        return NUMBERS[self.operand.dtype]

    @property
    def unit(self) -> int:
        """Columns of the batch that one load brings."""
        return self.numbers.unit(self.target.lanes)

    @property
    def layouts(self) -> str:
        """Those of the operand and of the result, in tuning keys."""
        return f"{self.operand.layout} to rows" if self.rows else self.operand.layout

    @property
    def step(self) -> int:
        """What a run of row groups is a multiple of: as many as are written at once."""
        return max(1, self.unit // self.topology.pattern.rows) if self.rows else 1

    @property
    def block(self) -> int:
        """Rows of a grain that are worked on at a time."""
        most = 4
        if self.operation == "matvec":
            most = self.target.lanes  # rows side by side in a vector, as the batch is not
        elif self.operation == "gather" and self.target.isa == "avx512" and self.numbers.parts == 1:
            most = 8  # what a column brings serves twice as many rows: it comes from L2
        return min(self.topology.pattern.rows, most)

    @property
    def chains(self) -> int:
        """Sums of a row that run side by side. It depends on nothing that is tuned, since they are added in another order."""
        abreast = self.block * self.numbers.parts * -(-self.batch // self.unit)
        return max(1, CHAINS // abreast) if self.operation == "gather" else 1

    @property
    def abreast(self) -> int:
        """Samples that a kernel for so many takes side by side; 0 of one for any number."""
        return self.batch if self.operation in {"skinny", "bitmap"} else 0

    @property
    def in_steps(self) -> bool:
        """Whether dot products are summed over the batch in several steps."""
        return self.operation in DOTS and self.batch > BATCH_STEP

    @one_at_a_time
    def decide(self, build: Build | None) -> Decision:
        """Which panels and tiles to use, by running what `build` makes of the candidates if they were never measured."""
        key = tuning.problem(
            self.operation, self.target, self.topology, self.batch, layout=self.layouts, threads=self.threads,
            dtypes=(self.operand.dtype, self.values),
        )  # fmt: skip
        known = tuning.known(key, self._candidates)
        if known is not None:
            return known
        before = {transposed: widths(self.topology, transposed=transposed) for transposed in (False, True)}
        decision = tuning.decide(key, self.topology.nnz * self.batch, self._candidates(), build)
        before[decision.choice.transposed].add(self.width(decision.choice))
        for transposed, used in before.items():
            forget(self.topology, widths(self.topology, transposed=transposed) - used, transposed=transposed)
        trim()
        return decision

    def width(self, choice: Choice) -> int:
        """Columns of grains in a tile of W, or rows where it is taken by columns."""
        most = self._across(choice)
        return min(choice.width or most, most)

    def _candidates(self) -> list[Choice]:
        if self.operation in AMX:
            return self._in_tiles()
        found = self._one_by_one()
        # The first guess is what every CPU does well. Pairs take half as long on some, twice as long on others.
        return found + [replace(each, pairs=True) for each in found if self._in_pairs(each)]

    def _in_pairs(self, choice: Choice) -> bool:
        # Where an instruction adds products in pairs, in the same order.
        if self.target.isa != "avx512" or self.operand.dtype != "bfloat16" or not adds_pairs():
            return False
        if self.operation == "scatter":
            # Pairs of rows, or where W is taken by columns, of what are columns there.
            return self.values == "bfloat16" and (choice.transposed or self.block > 1)
        return self.operation == "sddmm" or (
            self.operation == "gather" and self.values == "bfloat16" and self.chains == 1
        )

    def multiplied(self, choice: Choice) -> str:
        """The dtype of values as a kernel for `choice` multiplies or writes them."""
        # Values of a transpose are put in order as float32, unless pairs are read; sums of several steps are rounded after the last.
        return "float32" if (choice.transposed and not choice.pairs) or self.in_steps else self.values

    def _one_by_one(self) -> list[Choice]:
        lanes = self.target.lanes
        if self.operation in FEW_SAMPLES:
            few = Choice(1, self._held() if self.operation == "skinny" else 0, packed=not self.operand.features_first)
            by_bits = replace(few, packed=False, pairs=in_pairs(self.operand.dtype, self.values))
            return [by_bits if self.operation == "bitmap" else few]
        if self.operation == "sddmm":
            # A shorter run costs as much as one that makes so many dot products. Few of them take more loads a product, but
            # waste less of the short runs of tiles that fit in L1.
            fewer = [dots for dots in (lanes // 2, lanes // 4) if dots >= 4 * self.block]
            row, columns = self.numbers.bytes * min(self.batch, BATCH_STEP), self.topology.pattern.columns
            return [
                choice
                for dots in (lanes, *fewer)
                for choice in tuning.candidates(self.topology, [(dots, row)], run=dots / self.block / columns)
            ]
        whole, parts = -(-self.batch // self.unit), self.numbers.parts
        options = [max(1, option // parts) for option in VECTORS[self.target.isa][self.block]]
        most = dict.fromkeys(min(option, whole) for option in options)
        panels = [(vectors, 4 * lanes * vectors) for vectors in most]
        if self.chains > 1:
            # In tiles its sums would be added in another order.
            return [Choice(vectors, 0) for vectors, _ in panels]
        if self.operation == "gather":
            return tuning.candidates(self.topology, panels, direct=self.operand.features_first and self._unbroken)
        scattered = tuning.candidates(self.topology, panels)
        if self.topology.pattern.size > 1:
            return scattered
        return tuning.candidates(self.topology, panels, transposed=True) + scattered

    def _held(self) -> int:
        """Columns of grains whose samples, side by side in float32, the nearest cache holds, if a row keeps enough in so many; else 0, which is all."""
        columns = TILE // (4 * width_of(self.batch))
        if self.topology.pattern.columns > 1 or self.topology.pattern.rows > TALL or columns >= self.topology.width:
            return 0
        run = self.topology.grains * columns / (self.topology.width * self.topology.groups)
        return columns if run >= RUN else 0

    def _in_tiles(self) -> list[Choice]:
        if self.operation == "amx_sddmm":
            return [Choice(0, 0, pairs=True)]
        most = dict.fromkeys(min(vectors, -(-self.batch // self.unit)) for vectors in (TILED, 1))
        turned = self.operation == "amx_scatter"
        # Square grains are as good by columns, and no sums are stored between. Always so: it is another order of additions.
        if turned and self.topology.pattern.columns != self.topology.pattern.rows:
            panels = [(vectors, 4 * self.unit * vectors) for vectors in most]
            return [replace(each, pairs=True) for each in tuning.candidates(self.topology, panels)]
        ways = (False, True) if self.operand.features_first and self._unbroken else (True,)
        return [Choice(vectors, 0, packed, turned, pairs=True) for vectors in most for packed in ways]

    def _across(self, choice: Choice) -> int:
        return self.topology.groups if choice.transposed else self.topology.width

    @property
    def _unbroken(self) -> bool:
        # Where the last vector is partly filled, half precision takes several loads for it: in panels it is whole.
        return self.numbers.parts == 1 or self.batch % self.unit == 0

    def panels(self, choice: Choice) -> Panels:
        """How `choice` cuts the batch; few samples are whole. Dot products take it whole where rows of it fit in registers, and
        else in no panels.
        """
        if self.operation in FEW_SAMPLES:
            return Panels(count=1, vectors=1, wide=0, last=0)
        if self.operation == "amx_sddmm":
            return Panels(count=1, vectors=0, wide=0, last=0)
        if self.operation != "sddmm":
            return Panels.cut(self.batch, self.unit, choice.vectors)
        whole = Panels.cut(self.batch, self.unit, self.batch)
        held = whole.vectors * self.numbers.parts * self.block
        fits = self.batch <= BATCH_STEP and held + choice.vectors <= self.target.registers - SPARE
        return whole if fits else Panels(count=1, vectors=0, wide=0, last=0)

    def spec(self, choice: Choice, *, bias: bool = False, activation: str = "") -> KernelSpec:
        """The kernel for `choice`."""
        panels, across = self.panels(choice), self._across(choice)
        return KernelSpec(
            self.operation.replace("scatter", "gather") if choice.transposed else self.operation,
            self.target.isa,
            rows=self.topology.pattern.rows,
            columns=self.topology.pattern.columns,
            block=self.block,
            vectors=panels.vectors,
            dots=choice.vectors if self.operation == "sddmm" else 0,
            wide=panels.wide > 0,
            ragged=panels.last > 0,
            tiled=self.width(choice) < across,
            packed=choice.packed,
            bias=bias,
            activation=activation,
            batch_first=self.rows,
            pairs=choice.pairs,
            permuted=choice.transposed and self.operation == "amx_scatter",
            chains=1 if choice.transposed else self.chains,
            n=self.topology.pattern.n if self.operation == "n_of_m" else 0,
            m=self.topology.pattern.m if self.operation == "n_of_m" else 0,
            abreast=self.abreast,
            numbers=self.operand.dtype,
            values=self.multiplied(choice),
            index=index_dtype(across).itemsize,
        )
