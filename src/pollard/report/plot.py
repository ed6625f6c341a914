"""A run as a picture: curves over epochs, and paired bars of what it cost beside its dense twin, as one SVG text.

SVG is written by hand because a plot of two curves and six bars is not worth a plotting library at every install.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 420
INK, MUTED, RULE, PAPER = "#1d2a33", "#66757f", "#e3e8eb", "#ffffff"
COLOURS = ("#1b7f4d", "#97a3ab", "#c2682f", "#3b6ea8")
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Series:
    """A named curve: points (x, y) with x ascending; values that are not finite are left out of the picture."""

    name: str
    points: tuple[tuple[float, float], ...]

    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [point for point in self.points if all(map(math.isfinite, point))]


@dataclass(frozen=True)
class Bars:
    """One quantity of every contender, in the order of the series, with its text: ``Bars("step", (("sparse", 1.0, "1 ms"),))``."""

    title: str
    values: tuple[tuple[str, float, str], ...]


@dataclass(frozen=True)
class Figure:
    """A title, the curves on the left, and up to four groups of bars on the right."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    bars: tuple[Bars, ...] = ()


@dataclass(frozen=True)
class Frame:
    """A rectangle of the picture, and the data range that it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """The horizontal position of a data value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """The vertical position of a data value."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten, `about` of them.

    >>> ticks(0.0, 10.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    >>> ticks(91.2, 98.4)
    [90.0, 92.0, 94.0, 96.0, 98.0, 100.0]
    """
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def svg(figure: Figure) -> str:
    """The figure as a standalone SVG document, 960 x 420.

    >>> text = svg(Figure("A run", "digits", "epoch", "test accuracy, %", (Series("sparse", ((1, 90.0), (2, 95.0))),)))
    >>> text.startswith("<svg"), "A run" in text
    (True, True)
    """
    split = WIDTH - (380 if figure.bars else 40)
    drawn = [series for series in figure.series if series.finite()]
    body = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        _text(36, 42, figure.title, size=20, weight=600),
        _text(36, 64, figure.subtitle, size=13, colour=MUTED),
        *(_curves(figure, drawn, split) if drawn else []),
        *_all_bars(figure.bars, split + 60, WIDTH - 36),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="{FONT}" font-size="12" fill="{INK}">'
    )
    return "\n".join([head, f"<title>{escape(figure.title)}</title>", *body, "</svg>"]) + "\n"


def _curves(figure: Figure, drawn: Sequence[Series], right: float) -> list[str]:
    points = [point for series in drawn for point in series.finite()]
    xs, ys = zip(*points, strict=True)
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    x_range = (x_low, x_high) if x_high > x_low else (x_low - 0.5, x_high + 0.5)
    frame = Frame(72, 112, right, HEIGHT - 56, x_range, (y_ticks[0], y_ticks[-1]))
    out = [_text(36, 96, figure.y_label, colour=MUTED), *_grid(frame, y_ticks)]
    out.append(_text(frame.right, HEIGHT - 18, figure.x_label, colour=MUTED, anchor="end"))
    for index, series in enumerate(drawn):
        out += _curve(frame, series, COLOURS[index % len(COLOURS)])
    return out + _legend(drawn, frame.right)


def _grid(frame: Frame, y_ticks: Sequence[float]) -> list[str]:
    out = []
    for tick in y_ticks:
        y = frame.y(tick)
        out.append(f'<path d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}" stroke="{RULE}"/>')
        out.append(_text(frame.left - 10, y + 4, f"{tick:g}", colour=MUTED, anchor="end"))
    low, high = frame.x_range
    whole = [tick for tick in ticks(low, high) if low <= tick <= high and tick == int(tick)]
    return out + [_text(frame.x(tick), frame.bottom + 20, f"{tick:g}", colour=MUTED, anchor="middle") for tick in whole]


def _curve(frame: Frame, series: Series, colour: str) -> list[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in series.finite()]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    out = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.4" stroke-linejoin="round"/>']
    if len(places) <= 40:
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in places]
    return out


def _legend(drawn: Sequence[Series], right: float) -> list[str]:
    # One text of several colours: whoever draws it knows its fonts' widths and spaces the names; we do not.
    names = []
    for index, series in enumerate(drawn):
        names.append(f'<tspan fill="{COLOURS[index % len(COLOURS)]}">&#9679;</tspan> {escape(series.name)}')
    text = "&#160;&#160;&#160; ".join(names)
    return [f'<text x="{right:.1f}" y="96" font-weight="600" text-anchor="end">{text}</text>']


def _all_bars(groups: Sequence[Bars], left: float, right: float) -> list[str]:
    out: list[str] = []
    top = 96.0
    for group in groups:
        out.append(_text(left, top, group.title, colour=MUTED))
        longest = max((value for _, value, _ in group.values), default=0.0) or 1.0
        for index, (name, value, label) in enumerate(group.values):
            y = top + 10 + 22 * index
            length = max(2.0, value / longest * (right - left - 76))
            colour = COLOURS[index % len(COLOURS)]
            out.append(
                f'<rect x="{left:.1f}" y="{y:.1f}" width="{length:.1f}" height="16" rx="3" fill="{colour}">'
                f"<title>{escape(name)}: {escape(label)}</title></rect>"
            )
            out.append(_text(left + length + 8, y + 12.5, label, weight=600 if index == 0 else 400))
        top += 22 * len(group.values) + 34
    return out


def _text(
    x: float, y: float, text: str, *, size: int = 12, colour: str = INK, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
