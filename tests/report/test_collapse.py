"""Where layers collapse: the lowest density at which every run of a series has something left of every layer."""

from __future__ import annotations

from pollard.report.collapse import collapse_table, collapses


def point(label, density, *layers):
    return {"label": label, "density": density, "densities": {f"fc{i}": d for i, d in enumerate(layers)}}


POINTS = [
    point("dense", 1.0, 1.0, 1.0),
    point("SNIP", 0.1, 0.2, 0.1),
    point("SNIP", 0.1, 0.2, 0.2),
    point("SNIP", 0.01, 0.0, 0.2),
    point("SNIP", 0.01, 0.1, 0.2),
    point("SNIP", 0.001, 0.1, 0.2),
    point("at once", 0.1, 0.3, 0.0),
]


def test_one_empty_layer_in_one_run_is_collapse_and_what_comes_below_does_not_mend_it():
    snip, at_once = collapses(POINTS)
    assert (snip.label, snip.least, snip.critical_compression) == ("SNIP", 0.1, 10.0)
    assert snip.empty == {0.1: 0.0, 0.01: 0.5, 0.001: 0.0}
    assert (at_once.least, at_once.critical_compression) == (None, None)


def test_the_table_has_a_column_a_density_and_a_dash_where_nothing_is_intact():
    table = collapse_table(POINTS)
    assert [str(column.header) for column in table.columns] == [
        "", "intact down to", "compression", "10 %", "1 %", "0.1 %",
    ]  # fmt: skip
    assert [list(column.cells) for column in table.columns] == [
        ["SNIP", "at once"], ["10 %", "-"], ["10x", "-"], ["0%", "100%"], ["50%", ""], ["0%", ""],
    ]  # fmt: skip
