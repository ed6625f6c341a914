"""Numbers in the README and in docs/ are those of records and results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from statements import complaints, of_pages


def test_pages_say_what_records_and_results_say():
    script = Path(__file__).parents[1] / "scripts" / "figures.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0, f"run {script.name}"


def test_every_sentence_with_a_measured_figure_says_what_its_record_says():
    found = of_pages()
    assert complaints(found) == [], "see the head of scripts/statements.py"
    carried = {each.page for each in found for marker in each.markers if marker.kind == "from"}
    assert carried >= {"README.md", "docs/folk-knowledge.md", "docs/moving-topologies.md", "docs/methods/snip.md"}
