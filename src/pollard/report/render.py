"""How figures look to people: tables, quantities and curves in a terminal. Nothing here measures or decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from rich.table import Table
from rich.text import Text

from pollard.report.plot import Series, ticks
from pollard.tables import PrintedTable

SERIES_STYLES = ("bold green", "white", "yellow", "blue")
VS_DENSE, VS_PEER = "vs\nbest dense", "vs\nbest peer"
BRAILLE = 0x2800
# Bit of each of the 4 x 2 dots of a braille letter, by row and column.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def quantity_bytes(count: float | None) -> str:
    """Bytes in the unit that leaves one to three digits before the point, decimal units; a dash for None.

    >>> quantity_bytes(532), quantity_bytes(53_200), quantity_bytes(8_600_000_000), quantity_bytes(None)
    ('532 B', '53.2 kB', '8.60 GB', '-')
    """
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1e3
    return f"{size:.0f} {unit}" if unit == "B" else f"{_three_digits(size)} {unit}"


def quantity_seconds(seconds: float | None) -> str:
    """A duration in the unit that reads best; a dash for None.

    >>> quantity_seconds(0.00123), quantity_seconds(3.7e-5), quantity_seconds(12.0)
    ('1.23 ms', '37.0 us', '12.0 s')
    """
    if seconds is None:
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} us"


def quantity_share(share: float | None, digits: int = 2) -> str:
    """A fraction in percent; a dash for None.

    >>> quantity_share(0.9811), quantity_share(0.05, 1)
    ('98.11 %', '5.0 %')
    """
    return "-" if share is None else f"{share * 100:.{digits}f} %"


def quantity_ms(milliseconds: float) -> str:
    """Milliseconds with three digits, without their unit.

    >>> quantity_ms(0.12345), quantity_ms(217.9)
    ('0.123', '218')
    """
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def quantity_ratio(times: float | None) -> str:
    """How many times as fast; a dash for None.

    >>> quantity_ratio(2.345), quantity_ratio(None)
    ('2.35x', '-')
    """
    return "-" if times is None else f"{_three_digits(times)}x"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> PrintedTable:
    """A table, which prints as one too, whose first `left` columns are words and whose other columns are figures, aligned to the right.

    Where there is too little room, words are folded; names (the first column) and figures are not.
    """
    table = PrintedTable(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for index, column in enumerate(columns):
        words = index < left
        table.add_column(
            column, justify="left" if words else "right", header_style="dim", no_wrap=index == 0 or not words
        )
    for row in rows:
        table.add_row(*row)
    return table


def texts(table: Table) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a table of plain text.

    >>> texts(plain_table("A table", ["", "x"], [["a", "1"], ["b", "2"]]))
    (['', 'x'], [['a', '1'], ['b', '2']])
    """
    columns = [list(map(str, column.cells)) for column in table.columns]
    return [str(column.header) for column in table.columns], [list(row) for row in zip(*columns, strict=True)]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table in Markdown, its first `left` columns words and the others figures.

    >>> print(markdown(["", "x"], [["a", "1"]]))
    |  | x |
    | --- | ---: |
    | a | 1 |
    <BLANKLINE>
    """
    rule = ["---" if index < left else "---:" for index in range(len(columns))]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in (columns, rule, *rows))


def _cell(text: str) -> str:
    r"""`text` as one cell of a Markdown table, neither HTML nor the end of the cell.

    >>> _cell("a|b <i>")
    'a\\|b &lt;i>'
    """
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def bench_tables(records: Sequence[Mapping[str, Any]]) -> list[PrintedTable]:
    """Benchmark records as rows, a table for each layer or network, pattern, precision and number of threads.

    Ratios say how many times as fast Pollard is: as the fastest dense way in the same precision, which is named, as
    `nn.Linear`, as the fastest bfloat16 way, and as the fastest of the peers. A row that dense wins says so, in red.
    """
    tables: dict[str, PrintedTable] = {}
    for record in records:
        threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)}"
        heading = ", ".join([_shape(record), record["pattern"], record["dtype"], threads])
        table = tables.setdefault(heading, plain_table(heading, list(_BENCH_COLUMNS), []))
        cells = [tell(record) for tell in _BENCH_COLUMNS.values()]
        table.add_row(*cells, style="red" if record["dense_wins"] else None)
    for column in chain.from_iterable(table.columns for table in tables.values()):
        if column.header in (VS_DENSE, VS_PEER):
            column.justify = "left"
        column.no_wrap = column.header != VS_DENSE
    return list(tables.values())


def _shape(record: Mapping[str, Any]) -> str:
    if record["network"]:
        return f"{'-'.join(map(str, record['network']))}, batch {record['shape'][2]}"
    return "x".join(map(str, record["shape"]))


def best_dense(record: Mapping[str, Any]) -> str:
    """How many times as fast as the fastest dense way a record is, which way that is, and whether it wins."""
    wins = ", dense wins" if record["dense_wins"] else ""
    return f"{quantity_ratio(record['speedup']):>5} {record['best_dense']}{wins}"


def _best_peer(record: Mapping[str, Any]) -> str:
    peers = {"torch": "torch_sparse_ms", "MKL": "mkl_ms", "SciPy": "scipy_ms"}
    timed = [(record[field], peer) for peer, field in peers.items() if record[field] is not None]
    return f"{quantity_ratio(min(timed)[0] / record['ms']):>5} {min(timed)[1]}" if timed else "    -"


_BENCH_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "op": lambda record: record["op"],
    "density": lambda record: f"{record['density']:g}",
    "ms": lambda record: quantity_ms(record["ms"]),
    "GF/s": lambda record: f"{record['gflops']:.1f}",
    VS_DENSE: best_dense,
    "vs\nnn.Linear": lambda record: quantity_ratio(record["nn_linear_speedup"]),
    "vs\nbf16": lambda record: quantity_ratio(record["bf16_speedup"]),
    VS_PEER: _best_peer,
}


def terminal_plot(series: Sequence[Series], *, width: int = 60, height: int = 12) -> Text:
    """Curves in braille dots with a y axis, `width` x `height` letters: two by four dots each.

    >>> print(terminal_plot([Series("loss", ((0, 1.0), (1, 0.0)))], width=4, height=2).plain)
     1 ┤⠑⢄⠀⠀
     0 ┤⠀⠀⠑⢄
       └────
        0  1
    loss
    """
    drawn = [one for one in series if one.finite()]
    if not drawn:
        return Text("nothing to plot")
    xs, ys = zip(*(point for one in drawn for point in one.finite()), strict=True)
    scale = ticks(min(ys), max(ys), about=max(2, height // 3))
    x_range, y_range = (min(xs), max(xs)), (scale[0], scale[-1])
    canvas = [[(0, "")] * width for _ in range(height)]
    for index, one in enumerate(drawn):
        for column, row in _dots(one.finite(), x_range, y_range, (2 * width, 4 * height)):
            bits, _ = canvas[row // 4][column // 2]
            canvas[row // 4][column // 2] = (
                bits | DOTS[row % 4][column % 2],
                SERIES_STYLES[index % len(SERIES_STYLES)],
            )
    return _framed(canvas, _labels(scale, height), x_range, drawn)


def _dots(
    points: Sequence[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    size: tuple[int, int],
) -> list[tuple[int, int]]:
    """Column and row of each dot on the lines between `points`, without gaps however steep a line is."""
    (x_low, x_high), (y_low, y_high), (columns, rows) = x_range, y_range, size
    across, up = (columns - 1) / ((x_high - x_low) or 1.0), (rows - 1) / (y_high - y_low)
    places = [((x - x_low) * across, (y_high - y) * up) for x, y in points]
    dots = [(round(x), round(y)) for x, y in places[:1]]
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0))))
        dots += [
            (round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)) for step in range(1, steps + 1)
        ]
    return dots


def _labels(scale: Sequence[float], height: int) -> list[str]:
    labels = [""] * height
    span = scale[-1] - scale[0]
    for tick in scale:
        labels[round((scale[-1] - tick) / span * (height - 1))] = f"{tick:g}"
    return labels


def _framed(
    canvas: Sequence[Sequence[tuple[int, str]]],
    labels: Sequence[str],
    x_range: tuple[float, float],
    drawn: Sequence[Series],
) -> Text:
    margin = max(map(len, labels)) + 1
    text = Text()
    for label, row in zip(labels, canvas, strict=True):
        text.append(f"{label:>{margin}} {'┤' if label else '│'}", "dim")
        for bits, style in row:
            text.append(chr(BRAILLE + bits), style or None)
        text.append("\n")
    low, high = (f"{edge:g}" for edge in x_range)
    width = len(canvas[0])
    text.append(f"{'':{margin}} └{'─' * width}\n", "dim")
    text.append(f"{'':{margin}}  {low}{high:>{max(1, width - len(low))}}\n", "dim")
    for index, one in enumerate(drawn):
        text.append(("   " if index else "") + one.name, SERIES_STYLES[index % len(SERIES_STYLES)])
    return text
