"""docs/bytes.md: what a kept weight takes, counted after the products that it is held for have run."""

from __future__ import annotations

from unittest.mock import patch

import torch

from pollard.formats.topology import Topology
from pollard.kernels.products import derived, dispatch, tuning
from pollard.kernels.products.tuning import Choice, Decision
from pollard.report.render import markdown

SOURCE = "\n<!-- source: tests/held_bytes.py, which counts them -->\n"
HEAD = """\
# Bytes a kept weight

What a layer holds for each weight that it keeps, all index arrays included: 4096 x 4096 at 10 % density, `2:4` at its 50 %, and one layer that is wider than
16 bits count. Every number is counted on arrays that exist, after the products have run; `scripts/bytes_page.py` writes this page, and the tests fail
where it is not true.

* *indices*: row pointers and columns. Columns are held as uint16 up to a width of 65,536, as int32 beyond; in files and in a `state_dict` they are int32.
* *forward*: with what the kernels of a forward product derive, the borders of tiles of 512 columns. The same tiles serve the gradient of the values.
* *backward*: with what the gradient of the input derives besides. For the unstructured pattern that may be the transpose, as here, where measurement finds it
  faster; without it, and where the input takes no gradient, the figure is that of the forward product.
* Not counted: few samples of single weights of which much is kept derive [a bit for each column](decisions/0010-fewer-bytes.md#much-kept-of-single-weights-bits), 0.25 bytes a weight where half is kept, and never more than 1. <!-- given: arithmetic -->
* *float32*, *bfloat16*: the value itself on top. A gradient takes as much as a value, and what an optimizer holds is its own affair: Adam twice a value.

Temporary copies are not counted, such as the values in the order of the transpose, for the time of a product with it.

"""
WIDTH, BATCH = 512, 16
LAYERS = [
    *((pattern, (4096, 4096), 0.1) for pattern in ("unstructured", "v2", "v4", "v8", "v16", "b4x4", "b16x2")),
    ("2:4", (4096, 4096), 0.5),
    ("unstructured", (256, 70_000), 0.1),
]


def held(pattern: str, shape: tuple[int, int], density: float) -> tuple[float, float, float]:
    """Bytes of index arrays a kept weight: alone, after a forward product, and after both gradients."""
    topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(0))
    x, grad, values = torch.ones(BATCH, shape[1]), torch.ones(BATCH, shape[0]), torch.ones(topology.nnz)
    found = [topology.bytes]
    with patch.object(tuning, "known", lambda key, _: Decision(_choice(key, topology), "as the page says")):
        dispatch.forward(x, values, topology)
        found.append(topology.bytes + derived.derived_bytes(topology))
        dispatch.value_grad(grad, x, topology)
        dispatch.input_grad(grad, values, topology)
        found.append(topology.bytes + derived.derived_bytes(topology))
    alone, forward, backward = (each / topology.nnz for each in found)
    return alone, forward, backward


def _choice(key: str, topology: Topology) -> Choice:
    turned = key.startswith("scatter") and topology.pattern.size == 1
    return Choice(4 if key.startswith("sddmm") else 1, WIDTH // topology.pattern.columns, transposed=turned)


def page() -> str:
    """The whole page."""
    lines = []
    for pattern, shape, density in LAYERS:
        found = held(pattern, shape, density)
        totals = [size + each for size in (4, 2) for each in found[1:]]
        lines.append([f"`{pattern}`", f"{shape[0]} x {shape[1]}", *(f"{each:.2f}" for each in (*found, *totals))])
    names = ["indices", "forward", "backward", "float32, forward", "backward", "bfloat16, forward", "backward"]
    return HEAD + markdown(["pattern", "layer", *names], lines, left=2) + SOURCE
