"""bench and explain of networks: what they print, as JSON and for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import invoke
from pollard.cli import app

MODULE = """
import torch
from torch import nn


def tiny():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), torch.ones(4, 16)
"""
BENCH = ["bench", "--network", "tiny_networks:tiny", "--rounds", "2", "--density", "0.25"]
EXPLAIN = ["explain", "tiny_networks:tiny", "--pattern", "v4", "--density", "0.25"]


@pytest.fixture(autouse=True)
def written(own_folder):
    Path("tiny_networks.py").write_text(MODULE)
    yield
    sys.modules.pop("tiny_networks", None)


def test_bench_times_a_network_in_each_pattern_and_precision():
    words = ("--pattern", "v4,unstructured", "--dtype", "float32,bfloat16", "--threads", "1,2")
    records = json.loads(invoke(*BENCH, *words, "--json").stdout)
    assert [(one["threads"], one["pattern"], one["dtype"]) for one in records] == [
        (threads, pattern, dtype)
        for threads in (1, 2)
        for pattern in ("v4", "unstructured")
        for dtype in ("float32", "bfloat16")
    ]
    fields = {
        "network",
        "inputs",
        "density",
        "ms",
        "best_dense_ms",
        "best_dense",
        "dense_ms",
        "bf16_dense_ms",
        "machine",
    }
    assert set(records[0]) >= fields
    assert records[0]["network"] == "tiny_networks:tiny"


def test_bench_shows_networks_and_layers_in_one_call(tmp_path):
    file = tmp_path / "records.json"
    layer = ("--shape", "32x24x8", "--op", "forward", "--no-peers")
    shown = invoke(*BENCH, *layer, "--json", str(file)).stdout
    assert [one["op"] for one in json.loads(file.read_text())] == ["forward", "inference"]
    assert "tiny_networks:tiny on 4x16, 1 thread" in shown
    assert "32x24x8, unstructured, float32, 1 thread" in shown
    for column in ("best dense", "nn.Linear", "float32", "bf16"):
        assert column in shown


QUICK = ["--rounds", "1", "--density", "0.25", "--op", "forward", "--no-peers"]


@pytest.mark.parametrize(
    "words",
    [
        ["32x24x8,tiny_networks:tiny", "--json"],
        ["--json", "32x24x8,tiny_networks:tiny"],
        ["tiny_networks:tiny", "--json", "--shape", "32x24x8"],
        ["tiny_networks:tiny", "--shape", "32x24x8", "--json"],
        ["--network", "tiny_networks:tiny", "--shape", "32x24x8", "--json"],
    ],
)
def test_bench_takes_what_explain_takes_by_position_or_by_the_names_it_had(words):
    layer, network = json.loads(invoke("bench", *words, *QUICK).stdout)
    assert (layer["shape"], network["network"]) == ([32, 24, 8], "tiny_networks:tiny")


def test_bench_times_several_networks():
    found = json.loads(invoke("bench", "tiny_networks:tiny,tiny_networks:tiny", "--json", *QUICK).stdout)
    assert [one["network"] for one in found] == ["tiny_networks:tiny"] * 2


def test_explain_tells_the_costs_of_a_network():
    told = json.loads(invoke(*EXPLAIN, "--json").stdout)
    assert [layer["name"] for layer in told["layers"]] == ["0", "2"]
    assert told["total"]["sparse"] == pytest.approx(
        sum(layer["ms"]["sparse"] for layer in told["layers"]) + told["rest"]["sparse"]
    )
    shown = invoke(*EXPLAIN).stdout
    for words in ("32x16x4", "rest of the network", "total", "bf16", "skinny", "v4, float32"):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bench", "encodr"], "Did you mean 'encoder'?"),
        (["bench", "64x64"], "OUTxINxBATCH"),
        (["explain", "mixer-smal"], "package.module:function"),
        (["bench", "--network", "encodr"], "package.module:function"),
        (["bench", "--network", "encoder", "--tokens", "32"], "BATCHxLENGTH"),
        ([*BENCH, "--tokens", "1x8"], "its own inputs"),
        ([*BENCH, "--images", "1x3x8x8"], "its own inputs"),
        (["bench", "--network", "resnet-20", "--images", "3x32x32"], "BATCHxCHANNELSxHEIGHTxWIDTH"),
        (["explain", "resnet-20-x0.25", "--tokens", "1x8"], "--images, or none"),
        (["explain", "vgg-11-x0.125", "--images", "1x3x8x8"], "too small"),
        ([*BENCH, "--dtype", "float64"], "float32, bfloat16"),
        (["explain", "tiny_networks:tinny"], "tiny"),
        ([*EXPLAIN, "--dtype", "float64"], "float32, bfloat16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_network_takes_three_lines(words, told):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 3
