"""docs/bytes.md is what is held."""

from pathlib import Path

import pytest

from held_bytes import LAYERS, held, page
from pollard.kernels.code.target import host_isas

PAGE = Path(__file__).parents[3] / "docs" / "bytes.md"
pytestmark = pytest.mark.skipif(not host_isas(), reason="counts what kernels derive")


def test_the_page_is_what_is_held():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python scripts/bytes_page.py"


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_indices_are_two_bytes_a_grain_where_columns_fit(layer):
    pattern, (out, width), density = layer
    alone, forward, backward = held(pattern, (out, width), density)
    assert alone <= forward <= backward
    if pattern == "unstructured":
        assert alone == pytest.approx(2 if width <= 65_536 else 4, rel=0.01)
