"""Sentences that have a measured figure are computed again from what carries them."""

from __future__ import annotations

import json

import pytest
import statements
from statements import complaints, of_pages

POINTS = [
    {
        "label": label,
        "density": 0.1,
        "seed": seed,
        "run": f"{label}{seed}",
        "test_accuracy": accuracy,
        "train_loss": 0.25,
    }
    for label, accuracies in {"a": (0.90, 0.91, 0.92), "b": (0.95, 0.97, 0.96), "c": (0.90, 0.95, 0.88)}.items()
    for seed, accuracy in enumerate(accuracies)
]


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(statements, "ROOT", tmp_path)
    (tmp_path / "points.json").write_text(json.dumps(POINTS))
    (tmp_path / "rows.json").write_text('[{"op": "forward", "speedup": 1234.56}, {"op": "step", "speedup": -0.75}]')
    (tmp_path / "more.json").write_text('[{"speedup": 7.5}]')


def wrong(text, page="README.md"):
    return [told for each in statements.statements(page, text) for told in each.wrong()]


@pytest.mark.parametrize(
    "text",
    [
        'b is ahead of a by 5.0 points. <!-- from points.json: lead("b", "a", 0.1) -->',
        'a is 5.0 points behind, at 91.00. <!-- from points.json: lead("a", "b", 0.1); accuracy("a", 0.1) -->',
        'b is at 96.00 ± 2.48 % at 0.1, that is 10 %. <!-- from points.json: [accuracy("b", 0.1), half("b", 0.1)] -->',
        'The ends are 2.5 and 7.5. <!-- from points.json: within("b", "a", 0.1); shows("b", "a", 0.1); not shows("c", "a", 0.1) -->',
        'It is 1,234.6 times as fast, or -0.75. <!-- from rows.json: row(op="forward")["speedup"]; record[1]["speedup"] -->',
        'Two records: 0.25 and 0.8. <!-- from points.json: loss("a", 0.1) --> <!-- from rows.json: record[1]["speedup"] -->',
        'One expression, two records: 1234.56 and 7.5. <!-- from rows.json: record[0]["speedup"] --> <!-- from more.json: record[0]["speedup"] -->',
        "As published, 98.4. <!-- source: a paper -->",
        "Momentum 0.9 and version 2.13.1. <!-- given: the recipe -->",
        "Before.\n\n| 1.5 | 2.5 |\n| --- | --- |\n| 3.5 | |\n\n<!-- source: a paper -->\n",
        'a, b:\n\n| 0.1 | 0.2 |\n| 91.0 | 96.0 |\n\n<!-- from points.json: [accuracy(each, 0.1) for each in ("a", "b")]; 0.2 -->',
        "Nothing measured: 5 % of 300-100, v4, `0.5`, [a link](page-1.5.md), file-1.json.",
        "```\n0.25\n```\n\n    0.25\n\n<!-- figures:x -->\n| 0.25 |\n<!-- /figures -->\n\n# 0.25\n![0.25](0.25.svg)",
    ],
    ids=range(13),
)
def test_what_holds_is_not_complained_of(text):
    assert wrong(text) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('b is ahead by 5.1. <!-- from points.json: lead("b", "a", 0.1) -->', ["is 5, which", "carries 5.1"]),
        ("b is ahead by 5.0.", ["nothing carries 5.0"]),
        ('b by 5.0, c by 0.3. <!-- from points.json: lead("b", "a", 0.1) -->', ["nothing carries 0.3"]),
        ('b by -5.0. <!-- from points.json: lead("b", "a", 0.1) -->', ["is 5, which", "carries -5.0"]),
        ('It is shown. <!-- from points.json: shows("c", "a", 0.1) -->', ["is False"]),
        ('* First: 0.5\n* second: 5.0. <!-- from points.json: lead("b", "a", 0.1) -->', ["nothing carries 0.5"]),
        ('| 0.5 | 5.0 <!-- from points.json: lead("b", "a", 0.1) --> |', ["nothing carries 0.5"]),
        ('5.0. <!-- from points.json: lead("b", "a", 0.1) --> Then 0.5', ["nothing carries 0.5"]),
        ("It is 0.5.\n\n| 1.5 |\n\n<!-- source: a paper -->", ["nothing carries 0.5"]),
        ("| 1.5 |\n\nIt is 0.5. <!-- source: a paper -->", ["nothing carries 1.5"]),
        ("| 1.5 | 0.5 <!-- given: so --> |\n| 2.5 | 3.5 |\n\n<!-- source: a paper -->", ["carries 1.5", "carries 2.5"]),
        ('| 1.5 | 5.0 |\n\n<!-- from points.json: lead("b", "a", 0.1) -->', ["nothing carries 1.5"]),
    ],
    ids=range(12),
)
def test_what_does_not_hold_is_named(text, told):
    found = wrong(text)
    assert len(found) == len(told)
    assert all(part in one for part, one in zip(told, found, strict=True))


def test_an_expression_that_cannot_be_computed_is_named():
    with pytest.raises(ValueError, match="expected 1") as failure:
        wrong('0.5 <!-- from points.json: row(label="a") -->')
    assert failure.value.__notes__ == ['in points.json: row(label="a")']


def test_a_choice_on_held_out_examples_can_be_asked_for(tmp_path):
    held_out = [{**point, "series": "rates", "validation_accuracy": 1 - point["test_accuracy"]} for point in POINTS[:6]]
    (tmp_path / "points.json").write_text(json.dumps(held_out))
    text = 'Chosen: 91.00. <!-- from points.json: chosen("rates", 0.1) == "{}"; accuracy(chosen("rates", 0.1), 0.1) -->'
    assert wrong(text.format("a")) == []
    assert len(wrong(text.format("b"))) == 1


def test_some_seeds_can_be_asked_for_alone():
    assert wrong('a is at 90.5. <!-- from points.json: of_seeds(0, 1).accuracy("a", 0.1) -->') == []
    assert (
        wrong(
            'It is 5.0. <!-- from points.json: of_seeds(0).lead("b", "a", 0.1); not of_seeds(0).shows("b", "a", 0.1) -->'
        )
        == []
    )


def test_correlations_and_aims_can_be_asked_for(tmp_path):
    aimed = [
        point | {"label": f"{index}", "run": f"{index}", "aims": {"loss": index}, "test_accuracy": index / 10}
        for index, point in enumerate(POINTS)
    ]
    (tmp_path / "points.json").write_text(json.dumps(aimed))
    text = 'It is +1.0, +1.0 and +1.0 over all, with aim 3. <!-- from points.json: rank("loss"); rank("loss", 0.1); rank_within("loss", 0.1); aim("loss", "3", 0.1) -->'
    assert wrong(text) == []


def test_notes_of_decisions_answer_for_their_markers_only(tmp_path):
    text = 'Free 0.5.\n\nIt is 5.1. <!-- from points.json: lead("b", "a", 0.1) -->\n'
    for page in ("docs/decisions/note.md", "docs/page.md", "benchmarks/README.md"):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text(text)
    (tmp_path / "README.md").write_text("Fine.")
    assert [each.split(": ")[0] for each in complaints(of_pages())] == [
        *(f"benchmarks/README.md:{line}" for line in (1, 3, 3)),
        *(f"docs/decisions/note.md:{line}" for line in (3, 3)),
        *(f"docs/page.md:{line}" for line in (1, 3, 3)),
    ]
    assert complaints(of_pages(["docs/page.md"]))[0] == "docs/page.md:1: nothing carries 0.5: Free 0.5."


def test_the_table_names_sentence_file_expression_and_number(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text(
        'It is 5.0. <!-- from points.json: lead("b", "a", 0.1) -->\n\nIt is 0.9. <!-- given: so -->\n'
    )
    monkeypatch.setattr("sys.argv", ["statements.py", "README.md"])
    assert statements.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "README.md:1: It is 5.0.",
        '    points.json: lead("b", "a", 0.1) = 5',
        "README.md:3: It is 0.9.",
        "    given: so",
    ]
    (tmp_path / "README.md").write_text("It is 5.0.")
    monkeypatch.setattr("sys.argv", ["statements.py", "--check", "README.md"])
    assert statements.main() == 1
    assert "nothing carries 5.0" in capsys.readouterr().err


def test_lists_of_values_by_seed_differ_where_their_interval_says_so(tmp_path):
    rows = {"rows": [{"way": "a", "by_seed": [1.0, 2.0, 3.0]}, {"way": "b", "by_seed": [2.0, 3.1, 4.0]}]}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    differs = 'differ(row(way="a")["by_seed"], row(way="b")["by_seed"])'
    assert wrong(f"They do. <!-- from rows.json: {differs} -->") == []
    assert wrong(f"They do not. <!-- from rows.json: not {differs} -->") != []
    assert wrong("Nor one alone. <!-- from rows.json: not differ([1.0, 2.0], [2.0, 9.0]) -->") == []
