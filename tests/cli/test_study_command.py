"""`pollard study` and `pollard report`: from a file to runs, and from runs to tables and files."""

from __future__ import annotations

import csv
import json

import pytest
from typer.testing import CliRunner

from pollard.cli import app
from pollard.recipes.points import read_study
from pollard.recipes.study import Study
from pollard.report.choice import choices

STUDY = """
title = "Quick"
[recipe]
data = "digits"
model = "mlp-64-16-10"
epochs = 1
[grid]
density = [0.5, 0.25]
seed = [0, 1]
[[series]]
label = "dense"
method = "dense"
[[series]]
label = "SNIP"
"""


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "quick.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def out(file):
    folder = file.parent / "out"
    result = invoke("study", file, "--out", folder, "--workers", "2")
    assert result.exit_code == 0, result.stderr
    assert "6/6 " in result.stderr
    assert "Quick" in result.stdout
    assert "SNIP" in result.stdout
    return folder


def test_a_study_of_which_nothing_is_finished_says_so(file, tmp_path):
    Study.read(file).save(tmp_path)
    told = invoke("report", tmp_path)
    assert told.exit_code == 0
    assert told.stdout.splitlines() == ["Quick", "0 of 6 runs are finished"]


def test_the_same_command_again_has_nothing_to_run(file, out):
    again = invoke("study", file, "--out", out, "--json")
    assert again.exit_code == 0
    assert again.stderr == ""
    assert json.loads(again.stdout) == {"title": "Quick", "out": str(out), "runs": 6, "failed": {}}


def test_a_dry_run_only_lists(file, out, tmp_path):
    told = json.loads(invoke("study", file, "--out", tmp_path / "new", "--dry-run", "--json").stdout)
    assert told["left"] == 6
    assert not (tmp_path / "new").exists()
    assert "0 of 6 left" in invoke("study", file, "--out", out, "--dry-run").stdout


@pytest.mark.parametrize("words", [("train",), ("study", "FILE")], ids=" ".join)
def test_a_device_that_is_not_there_is_refused_before_anything_is_begun(words, file, tmp_path):
    given = [file if word == "FILE" else word for word in words]
    result = invoke(*given, "--out", tmp_path / "out", "--device", "nowhere")
    assert result.exit_code == 2
    assert "device 'nowhere'" in result.stderr
    assert list((tmp_path / "out").glob("*/*.json")) == []


def test_a_failure_is_told_and_is_the_exit_status(tmp_path):
    broken = tmp_path / "broken.toml"
    one_density = STUDY.replace("[0.5, 0.25]", "[0.5]")
    broken.write_text(one_density + '[[series]]\nlabel = "broken"\nmodel = "mlp-63-16-10"\n')
    result = invoke("study", broken, "--out", tmp_path / "out", "--workers", "1")
    assert result.exit_code == 1
    assert result.stdout.count(" failed: ") == 2
    report = invoke("report", tmp_path / "out")
    assert report.exit_code == 0
    assert "4 of 6 runs are finished" in report.stdout
    assert report.stdout.count(" failed: ") == 2


def test_all_series_are_set_beside_the_first_or_the_one_that_is_named(out):
    assert "above dense, in points" in invoke("report", out).stdout
    assert "above SNIP, in points" in invoke("report", out, "--against", "SNIP").stdout
    wrong = invoke("report", out, "--against", "snap")
    assert wrong.exit_code != 0
    assert "one of dense, SNIP" in wrong.stderr


def test_a_report_writes_what_it_is_asked_for(out, tmp_path):
    files = {name: tmp_path / f"points.{name}" for name in ("html", "json", "csv", "markdown", "pairs")}
    result = invoke("report", out, *(word for name, path in files.items() for word in (f"--{name}", path)))
    assert result.exit_code == 0, result.stderr
    assert "rank correlation" in result.stdout
    points = json.loads(files["json"].read_text())
    assert len(points) == 6
    assert points[0].keys() >= {"method", "density", "seed", "test_accuracy"}
    assert [(p["method"], p["density"], p["seed"]) for p in points[2:]] == [
        ("snip", density, seed) for density in (0.5, 0.25) for seed in (0, 1)
    ]
    with files["csv"].open() as handle:
        assert [float(row["test_accuracy"]) for row in csv.DictReader(handle)] == [p["test_accuracy"] for p in points]
    assert files["markdown"].read_text().startswith("# Quick\n\n| n = 2: no interval |")
    with files["pairs"].open() as handle:
        told = [(row["label"], row["against"], row["density"], row["n"], "p" in row) for row in csv.DictReader(handle)]
    assert told == [("SNIP", "dense", "0.5", "2", False), ("SNIP", "dense", "0.25", "2", False)]
    assert files["html"].read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("words", [["study", "none.toml", "--out", "out"], ["report", "nowhere"]], ids=" ".join)
def test_a_mistake_is_three_lines(words):
    result = invoke(*words)
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["got", "expected", "next step"]


@pytest.fixture(scope="module")
def first_seed(out):
    """The points of seed 0, as they would have been told before some of their figures were."""
    file = out.parent / "first-seed.json"
    assert invoke("report", out, "--json", file).exit_code == 0
    points = [point for point in json.loads(file.read_text()) if point["seed"] == 0]
    file.write_text(json.dumps([{k: v for k, v in point.items() if k != "training_flops"} for point in points]))
    return file


def test_known_points_are_not_run_again_and_are_reported_with_what_is(file, out, first_seed, tmp_path):
    command = ("study", file, "--out", tmp_path / "other", "--known", first_seed, "--workers", "1")
    assert "3 of 6 left" in invoke(*command, "--dry-run").stdout
    assert not (tmp_path / "other").exists()
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    assert "3/3 " in result.stderr
    assert invoke("study", file, "--out", tmp_path / "other").stderr == ""  # what was brought stays
    told = {}
    for name, folder in {"whole": out, "other": tmp_path / "other"}.items():
        written = invoke("report", folder, "--json", tmp_path / f"{name}.json", "--html", tmp_path / "page.html")
        assert written.exit_code == 0, written.stderr
        assert "6 of 6 runs are finished" in written.stdout
        told[name] = [
            (p["run"], p["label"], p["test_accuracy"]) for p in json.loads((tmp_path / f"{name}.json").read_text())
        ]
    assert [one[:2] for one in told["other"]] == [one[:2] for one in told["whole"]]
    assert set(told["whole"]) >= {one for one, seed in zip(told["other"], (0, 1) * 3, strict=True) if seed == 0}


def test_a_known_point_is_called_what_the_study_calls_it(first_seed, tmp_path):
    renamed = tmp_path / "renamed.toml"
    renamed.write_text(STUDY.replace('"SNIP"', '"by connection"') + '[[series]]\nlabel = "again"\ndensity = 0.25\n')
    command = ("study", renamed, "--out", tmp_path / "out", "--known", first_seed, "--dry-run")
    assert "3 of 6 left" in invoke(*command).stdout
    Study.read(renamed).save(tmp_path / "out")
    (tmp_path / "out" / "known.json").write_text(first_seed.read_text())
    found = [(point["label"], point["series"], point["density"]) for point in read_study(tmp_path / "out").points]
    assert found == [
        ("dense", "dense", 1.0),
        *(("by connection",) * 2 + (d,) for d in (0.5, 0.25)),
        ("again", "again", 0.25),
    ]


def test_settings_are_chosen_on_held_out_examples(tmp_path):
    file = tmp_path / "rates.toml"
    file.write_text(
        STUDY.replace("epochs = 1", "epochs = 1\nvalidation = 0.2").replace("seed =", "lr = [0.1, 0.001]\nseed =")
    )
    out = tmp_path / "out"
    told = invoke("study", file, "--out", out, "--workers", "1")
    assert told.exit_code == 0, told.stderr
    told_again = invoke("report", out, "--markdown", tmp_path / "table.md", "--html", tmp_path / "page.html").stdout
    page = (tmp_path / "page.html").read_text()
    for text in (told.stdout, told_again, page):
        assert "validation accuracy in percent" in text
        assert "chosen by validation accuracy" in text
    written = (tmp_path / "table.md").read_text()
    _, validation, chosen = written.split("\n## ")
    assert validation.startswith("Validation accuracy in percent by fraction kept\n\n| n = 2: no interval |")
    best = {one.series: one for one in choices(read_study(out).points) if one.density in (1.0, 0.5)}
    assert best.keys() == {"dense", "SNIP"}
    assert all(one.label.endswith("lr 0.1") for one in best.values())
    assert f"| lr 0.1: {best['dense'].test.percent()} |" in chosen


def test_a_known_dense_run_is_made_where_others_take_weights_from_it(file, out, first_seed, tmp_path):
    more = tmp_path / "more.toml"
    more.write_text(STUDY + '[[series]]\nlabel = "after training"\nmethod = "magnitude"\nscore_at = 1.0\n')
    told = json.loads(invoke("study", more, "--out", tmp_path, "--known", first_seed, "--dry-run", "--json").stdout)
    left = [run["label"] for run in told["runs"] if not run["finished"]]
    assert (left.count("dense"), left.count("SNIP"), left.count("after training")) == (2, 2, 4)


def test_known_points_without_aims_do_not_stand_for_runs_of_a_study_that_asks_for_them(file, first_seed, tmp_path):
    without = tmp_path / "without.json"
    without.write_text(json.dumps([{**point, "aims": None} for point in json.loads(first_seed.read_text())]))
    command = ("study", file, "--out", tmp_path / "out", "--known", without, "--dry-run")
    assert "5 of 6 left" in invoke(*command).stdout  # nothing was pruned in a dense one
    file = tmp_path / "careless.toml"
    file.write_text(STUDY.replace("[recipe]", "aims = false\n[recipe]"))
    assert "3 of 6 left" in invoke("study", file, *command[2:]).stdout


@pytest.mark.parametrize(
    "edit, told",
    [
        (lambda points: {"points": points}, "holds a dict"),
        (lambda points: [*points, 3], "a point 3"),
        (lambda points: [{**points[0], "curve": 3}], "a point {"),
        (lambda points: [{**point, "seed": "0"} for point in points], "a point {"),
        (lambda points: [{**points[0], "recipe": {**points[0]["recipe"], "epochs": 2}}], "is named by"),
        (lambda _: [], "none of whose runs is in 'Quick'"),
    ],
)
def test_known_points_that_are_none_are_refused_and_nothing_is_begun(edit, told, file, first_seed, tmp_path):
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(edit(json.loads(first_seed.read_text()))))
    result = invoke("study", file, "--out", tmp_path / "out", "--known", damaged)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "out").exists()
