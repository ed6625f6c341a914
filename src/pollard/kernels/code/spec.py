"""What a generated kernel is specialised to: a frozen value, one line of text, the cache key of compiled code."""

from __future__ import annotations

from dataclasses import dataclass

from pollard.errors import KernelError

PRODUCTS = (
    "gather",
    "matvec",
    "n_of_m",
    "skinny",
    "bitmap",
    "scatter",
    "sddmm",
    "pack",
    "convolve",
    "transposed",
    "correlate",
)
AMX = ("amx_gather", "amx_scatter", "amx_sddmm")
INDICES = (
    "above", "absent", "between", "choose", "count", "cut", "draw", "list", "mark", "move", "order", "outlast", "place", "rewire", "tally", "tick",
    "turn", "within",
)  # fmt: skip
STREAMS = ("uniform", "uniform_at", "normal", "normal_at", "round")
OPERATIONS = PRODUCTS + AMX + INDICES + STREAMS


@dataclass(frozen=True, order=True, slots=True)
class KernelSpec:
    """One kernel.

    operation: ``gather`` reads the columns a row keeps (``Y = W X``), ``matvec`` does so for one sample, ``n_of_m`` where `n` of
    every `m` weights are kept, ``skinny`` for a few samples, ``bitmap`` for one or a few where a bit for each column says what is kept, ``scatter`` adds to them (``dX = W^T dY``), ``sddmm`` takes dot products on the pattern
    (``dW``), ``pack`` lays a dense operand out in panels. ``convolve``, ``transposed`` and ``correlate`` are ``gather``,
    ``scatter`` and ``sddmm`` over images. Those with ``amx_`` do so in the tiles of AMX, for sixteen rows that share their columns. Index work: ``mark``, ``rewire`` and ``absent`` merge rows,
    ``tally`` counts what stays of them, ``place`` lists it, ``tick`` and ``list`` make numbers distinct and ascending,
    ``draw`` draws candidates, ``choose`` lists high scores, ``within`` and ``above`` find them for a ranking, ``outlast`` and ``between`` list weights that are above many
    bounds, ``move``
    carries values along, ``cut`` finds the borders of tiles, ``count`` and ``turn`` make a transpose, ``order`` lays values
    out in its order. Streams: ``uniform`` and ``normal`` make the numbers of rows, those with ``_at`` the numbers at positions;
    ``round`` rounds by random bits.
    isa: the instruction set. rows, columns: of a grain. block: rows of a grain worked on at a time. vectors: vectors side by
    side in a panel, 0 where the batch is walked in none (``sddmm``); `wide` panels, if any, have one more; `ragged`: the
    last vector of the last panel is partly filled. dots: dot products at a time (``sddmm``). tiled: the columns of W are
    walked in cache-sized tiles. packed: the gathered or scattered operand lies in panels, otherwise features-first (for
    ``pack`` and ``skinny``: the source is batch-first, to be transposed). permuted: only flagged grains stay (``absent``), or W is taken by columns (``amx_gather``). bias: fused
    into ``gather``, ``matvec``, ``n_of_m``, ``skinny``, ``bitmap`` and ``convolve``, and so is an activation, which a finished sum goes through. batch_first: rows of the result are
    contiguous, not its features (``gather``, ``skinny``, ``bitmap``, ``scatter``). size: bytes of a value (``move``), or of a row group in what is made
    (``turn``). index: bytes of a column in W, or of what stands for it in a transpose. chains: sums of a row that run side by
    side, where there are too few of other rows and columns (``gather``). numbers: of dense operands and results, as they lie
    in memory. values: of W, and of the bias. pairs: of bfloat16 numbers, which one instruction multiplies and adds. abreast: samples side by side (``skinny``, ``bitmap`` and those over images). reach: where vectors of a patch begin in the field and in
    what is made or multiplied with it (``convolve``, ``transposed``, ``correlate``).

    >>> spec = KernelSpec("gather", "avx2", rows=4, block=4, vectors=3, tiled=True)
    >>> str(spec)
    'gather.avx2.v4.b4.c3.tiled.packed'
    """

    operation: str
    isa: str
    rows: int = 1
    columns: int = 1
    block: int = 1
    vectors: int = 1
    dots: int = 0
    wide: bool = False
    ragged: bool = False
    tiled: bool = False
    packed: bool = True
    permuted: bool = False
    bias: bool = False
    activation: str = ""
    batch_first: bool = False
    pairs: bool = False
    size: int = 4
    chains: int = 1
    numbers: str = "float32"
    values: str = "float32"
    index: int = 4
    n: int = 0
    m: int = 0
    abreast: int = 0
    reach: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS or self.rows % self.block or self.vectors < 0:
            raise KernelError(
                repr(self),
                f"an operation of {OPERATIONS} with a block that divides the rows",
                "Report this as a defect.",
            )

    @property
    def rests(self) -> bool:
        """Whether sums rest between tiles beside the result: it could not hold them without rounding (``gather``), or not side by side."""
        if self.operation == "convolve":
            return self.tiled and self.abreast == 1
        if self.operation == "skinny":
            return self.tiled
        return self.operation == "gather" and self.tiled and (self.batch_first or self.numbers != "float32")

    def __str__(self) -> str:
        flags = ("pairs", "wide", "ragged", "tiled", "packed", "permuted", "bias", "batch_first")
        grain = f"v{self.rows}" if self.columns == 1 else f"b{self.rows}x{self.columns}"
        parts = [self.operation, self.isa, grain, f"b{self.block}", f"c{self.vectors}"]
        sizes = [f"d{self.dots}"] * (self.dots > 0) + [f"s{self.size}"] * (self.size != 4)
        sizes += [f"x{self.chains}"] * (self.chains > 1) + [f"i{self.index}"] * (self.index != 4)
        sizes += [f"{self.n}:{self.m}"] * (self.m > 0) + [f"a{self.abreast}"] * (self.abreast > 0)
        sizes += [f"r{x}-{y}" for x, y in self.reach]
        kinds = [self.numbers] * (self.numbers != "float32") + [f"w{self.values}"] * (self.values != "float32")
        told = [flag for flag in flags if getattr(self, flag)] + [self.activation] * (self.activation != "")
        return ".".join(parts + sizes + kinds + told)
