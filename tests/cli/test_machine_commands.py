"""bench, doctor, explain and data: what they print, as JSON and for people."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from commands import invoke
from pollard.cli import app, doctor
from pollard.report.doctor import KINDS, SIDES, Check, Diagnosis

BENCH = ["bench", "32x24x8", "--rounds", "2", "--density", "0.25"]
FIELDS = {
    "op",
    "pattern",
    "dtype",
    "shape",
    "density",
    "threads",
    "ms",
    "gflops",
    "dense_ms",
    "best_dense_ms",
    "best_dense",
    "bf16_dense_ms",
    "speedup",
    "nn_linear_speedup",
    "bf16_speedup",
    "machine",
    "torch_sparse_ms",
    "target",
}


def test_bench_prints_records(tmp_path):
    records = json.loads(invoke(*BENCH, "--pattern", "unstructured,v4", "--op", "forward,step", "--json").stdout)
    assert [(one["op"], one["pattern"]) for one in records] == [
        ("forward", "unstructured"),
        ("forward", "v4"),
        ("step", "unstructured"),
        ("step", "v4"),
    ]
    assert set(records[0]) >= FIELDS
    assert records[0]["shape"] == [32, 24, 8]


def test_bench_writes_records_and_shows_a_table(tmp_path):
    file = tmp_path / "records.json"
    shown = invoke(*BENCH, "--op", "forward", "--json", str(file), "--no-peers").stdout
    [record] = json.loads(file.read_text())
    assert record["torch_sparse_ms"] is None
    assert "32x24x8" in shown
    assert ("dense wins" in shown) == record["dense_wins"]


def test_bench_times_every_precision_asked_for():
    records = json.loads(invoke(*BENCH, "--op", "forward", "--dtype", "float32,bfloat16", "--json").stdout)
    assert [one["dtype"] for one in records] == ["float32", "bfloat16"]
    shown = invoke(*BENCH, "--op", "forward", "--dtype", "float32,bfloat16").stdout
    assert "32x24x8, unstructured, bfloat16, 1 thread" in shown
    for column in ("best dense", "nn.Linear", "bf16", "best peer"):
        assert column in shown


def test_bench_times_a_whole_network():
    words = ["bench", "--step-network", "24-16-10", "--batch", "4", "--rounds", "2", "--pattern", "v4", "--json"]
    [record] = json.loads(invoke(*words).stdout)
    assert (record["op"], record["network"], record["shape"]) == ("step", [24, 16, 10], [16, 24, 4])


def test_doctor_tells_facts_and_checks_every_kernel():
    told = json.loads(invoke("doctor", "--json").stdout)
    assert told["healthy"]
    assert {"cpu", "torch", "dense float32", "cache folder"} <= set(told["facts"])
    convolutions = [check for check in told["checks"] if check["name"].startswith("convolution")]
    assert len(convolutions) == 3 * 2 * len(SIDES)
    assert len(told["checks"]) == 3 * len(KINDS) + len(convolutions)
    shown = invoke("doctor").stdout
    assert "FAIL" not in shown
    assert "value_grad v16" in shown


def test_doctor_fails_when_a_kernel_does(monkeypatch):
    sick = Diagnosis({"cpu": "a [strange] one"}, [Check("forward v4", ok=False, detail="off [by] much")])
    monkeypatch.setattr(doctor, "examine", lambda: sick)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "off [by] much" in result.stdout


@pytest.mark.parametrize("op", ["forward", "input_grad", "value_grad"])
def test_explain_names_a_kernel_and_its_reason(op):
    told = json.loads(invoke("explain", "64x64x32", "--op", op, "--ir", "--asm", "--json").stdout)
    assert told["choice"]
    assert told["reason"]
    assert "define" in told["ir"]
    assert told["assembly"]
    shown = invoke("explain", "64x64x32", "--op", op).stdout
    assert told["choice"] in shown
    assert "define" not in shown


def test_data_list_knows_the_built_in_set():
    entries = json.loads(invoke("data", "list", "--json").stdout)
    assert entries[0]["name"] == "digits"
    assert entries[0]["cached"]
    assert "digits" in invoke("data", "list").stdout


def test_data_get_of_a_built_in_set_fetches_nothing():
    assert json.loads(invoke("data", "get", "digits", "--json").stdout) == {"digits": None}
    assert "built in" in invoke("data", "get", "digits").stdout


def test_data_path_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("POLLARD_DATA", str(tmp_path))
    assert invoke("data", "path").stdout == f"{tmp_path}\n"


@pytest.mark.parametrize("op", ["forward", "input_grad"])
def test_explain_names_the_kernel_of_a_convolution(op):
    asked = "explain", "16x8x3x3", "--images", "4x8x12x12", "--op", op
    told = json.loads(invoke(*asked, "--asm", "--json").stdout)
    assert told["choice"].startswith("convolve")
    assert "patches of" in told["choice"]
    assert told["assembly"]
    assert told["reason"] in invoke(*asked).stdout


@pytest.mark.parametrize(
    ("option", "choice", "reason"),
    [("--device=cuda", "panels", "for CPUs"), ("--dtype=float64", "unfolded", "torch.float64")],
)
def test_explain_says_where_a_convolution_has_no_kernel_and_why(option, choice, reason):
    told = json.loads(invoke("explain", "16x8x3x3", "--images", "4x8x12x12", option, "--json").stdout)
    assert told["choice"] == choice
    assert reason in told["reason"]


def test_explain_names_an_activation_that_is_fused():
    told = json.loads(invoke("explain", "64x64x32", "--activation", "gelu_tanh", "--json").stdout)
    assert ".gelu_tanh," in told["choice"]
    for asked in (
        ("64x64x32", "--activation", "tanh"),
        ("64x64x32", "--activation", "gelu", "--op", "input_grad"),
        ("16x8x3x3", "--activation", "gelu"),
    ):
        result = CliRunner().invoke(app, ["explain", *asked])
        assert result.exit_code != 0
        assert "activation" in result.output


def test_explain_refuses_what_is_no_convolution_of_these_images():
    for asked, wanted in (
        (("16x8x3x3", "--images", "4x5x12x12"), "images of shape"),
        (("16x8x3x3", "--op", "value_grad"), "operation"),
        (("16x8x0x3",), "four whole numbers"),
        (("16x8x3x3", "--dtype", "int8"), "dtype"),
        (("16x8x3x3", "--device", "tape"), "device"),
    ):
        result = CliRunner().invoke(app, ["explain", *asked])
        assert result.exit_code == 2, result.output
        assert wanted in result.output


def test_explain_shows_what_a_method_does_over_time():
    words = ("--density", "0.1", "--steps", "1000", "--method-options", "every=100")
    told = json.loads(invoke("explain", "gmp", *words, "--json").stdout)
    assert [update["step"] for update in told["updates"]] == list(range(50, 751, 100))
    assert told["updates"][-1]["density"] == pytest.approx(0.1)
    shown = invoke("explain", "rigl", "--method-options", "every=50,fraction=0.2").stdout
    assert "150 updates in 10,000 steps, every 50" in shown
    assert "20.0 % are exchanged at the first update" in shown
    assert "topology stays" in invoke("explain", "static").stdout


def test_explain_of_something_else_says_what_can_be_explained():
    result = CliRunner().invoke(app, ["explain", "rigle"])
    assert result.exit_code
    assert "rigl" in result.stderr
