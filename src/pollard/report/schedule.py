"""What a method does over time, as figures and as a small plot."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from pollard.report.plot import Series
from pollard.report.render import quantity_share, terminal_plot
from pollard.training.methods.method import Method

POINTS = 60


def schedule_view(method: Method, steps: int, density: float) -> tuple[dict[str, Any], list[RenderableType]]:
    """The updates of `method` over `steps`: step, density to hold and fraction exchanged, as JSON and for a terminal.

    density: what is held where the method holds what there is.

    >>> from pollard.training.methods.rigl import rigl
    >>> answer, _ = schedule_view(rigl(0.1, 1000, every=100), 1000, 0.1)
    >>> answer["count"], answer["updates"][0]
    (7, {'step': 100, 'density': 0.1, 'fraction': 0.287031...})
    """
    updates = []
    step = method.next_due(0)
    while step is not None and step <= steps:
        held = density if method.density is None else method.density(step)
        updates.append({"step": step, "density": held, "fraction": method.fraction(step)})
        step = method.next_due(step)
    answer = {
        "method": method.name,
        "cite": method.cite,
        "count": len(updates),
        "every": method.every,
        "updates": updates,
        "passes_of_steps": method.window,
    }
    if not updates:
        return answer, [f"{method.name}: no update in {steps:,} steps; the topology stays"]
    first, last = updates[0], updates[-1]
    when = f"every {method.every} from step {first['step']:,} to step {last['step']:,}"
    lines: list[RenderableType] = [f"{method.name}: {len(updates)} updates in {steps:,} steps, {when}"]
    if any(update["fraction"] for update in updates):
        shares = [quantity_share(update["fraction"], 1) for update in (first, last)]
        lines.append(f"of a layer's weights {shares[0]} are exchanged at the first update, {shares[1]} at the last")
    else:
        lines.append("none that is kept gives way to another")
    lines += [f"growth looks at {_passes(method.window)}", "", "percent, by step"]
    return answer, [*lines, terminal_plot(_curves(method, steps, density))]


def _passes(window: int) -> str:
    if not window:
        return "no gradients of other weights"
    return "the passes of the update's own step" if window == 1 else f"the passes of the last {window} steps"


def _curves(method: Method, steps: int, density: float) -> list[Series]:
    held, exchanged = [], []
    for step in sorted({round(steps * point / POINTS) for point in range(POINTS + 1)}):
        now = density if method.density is None else method.density(method.last_due(step))
        held.append((float(step), 100.0 * now))
        exchanged.append((float(step), 100.0 * method.fraction(step) if step <= method.end else 0.0))
    curves = [Series("density", tuple(held)), Series("fraction exchanged", tuple(exchanged))]
    return curves if any(share for _, share in exchanged) else curves[:1]
