"""Tables that print: rich tables whose text is the table itself, in a terminal, a log, a notebook or a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rich.console import Console
from rich.table import Table
from torch import Tensor

# Wide enough for any table of ours: text that is folded cannot be searched.
WIDEST = 1000


class PrintedTable(Table):
    """A rich table that `print` shows too, without colours.

    >>> table = PrintedTable("layer", "kept", box=None)
    >>> table.add_row("fc1", "12")
    >>> print(table)
    layer  kept
    fc1    12
    """

    def __str__(self) -> str:
        console = Console(width=WIDEST, color_system=None, force_terminal=False, legacy_windows=False, no_color=True)
        # A caption is folded to the width of its table, which may be small.
        caption, self.caption = self.caption, None
        try:
            with console.capture() as captured:
                console.print(self)
        finally:
            self.caption = caption
        lines = [*captured.get().splitlines(), *([str(caption)] if caption else [])]
        return "\n".join(line.rstrip() for line in lines)


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", note: str = "") -> str:
    """A table in HTML for notebooks; whatever the texts hold is shown, not run.

    >>> html_table(["a"], [["<b>"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def html_topology(shape: tuple[int, int], pattern: str, nnz: int, fan_in: Tensor) -> str:
    """What a notebook shows of a topology: one row of figures."""
    rows, columns = shape
    kept = f"{int(fan_in.min())} to {int(fan_in.max())}" if fan_in.numel() else "-"
    figures = (f"{rows} x {columns}", pattern, f"{nnz / max(1, rows * columns):.4f}", f"{nnz:,}", kept)
    return html_table(("shape", "pattern", "density", "kept", "kept of a row"), [figures], title="Topology")


__all__ = ["PrintedTable", "html_table", "html_topology"]
