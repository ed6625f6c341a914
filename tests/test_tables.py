from __future__ import annotations

from pollard.report.render import plain_table
from pollard.tables import PrintedTable, html_table


def test_a_table_prints_as_what_a_wide_terminal_shows():
    table = PrintedTable("layer", "kept", title="A plan")
    table.add_row("fc1", "12")
    lines = str(table).splitlines()
    assert "A plan" in lines[0]
    assert any("fc1" in line and "12" in line for line in lines)
    assert not any("\x1b" in line or line.endswith(" ") for line in lines)


def test_nothing_is_folded_however_narrow_the_terminal_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    name = "encoder.layers.11.feed_forward.projection"
    assert name in str(plain_table("t", ["layer", "kept"], [[name, "1"]]))


def test_what_a_name_holds_is_shown_in_html_and_not_run():
    shown = html_table(["layer"], [["<script>alert(1)</script>"]], title="a & b", note="<i>")
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<caption>a &amp; b</caption>" in shown
    assert "<p>&lt;i&gt;</p>" in shown
