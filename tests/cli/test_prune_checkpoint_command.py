"""``pollard prune-checkpoint``: from file to file."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import pollard
from checkpoints import network, same, saved
from pollard.cli import app


def invoke(*words):
    return CliRunner().invoke(app, ["prune-checkpoint", *map(str, words)])


@pytest.mark.parametrize("shards", [1, 2])
def test_the_file_is_what_the_call_writes(tmp_path, shards):
    path, one, other = saved(network(), tmp_path, shards), tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    words = ("--density", 0.2, "--criterion", "random", "--seed", 4, "--layers", "body,head", "--pattern", "v4")
    result = invoke(path, "--out", one, *words, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    drawn = torch.Generator().manual_seed(4)
    plan = pollard.prune_checkpoint(path, other, "random", 0.2, layers=["body", "head"], pattern="v4", generator=drawn)
    assert one.read_bytes() == other.read_bytes()
    assert (told["nnz"], told["weights"], told["bytes"]) == (plan.nnz, plan.weights, one.stat().st_size)
    assert list(told["layers"]) == list(plan)
    same(pollard.load_sparse(network(), one), pollard.load_sparse(network(), other))


def test_people_are_shown_the_plan_and_what_stays_dense(tmp_path):
    result = invoke(saved(network(), tmp_path), "--out", tmp_path / "s.safetensors", "--density", 0.2)
    assert result.exit_code == 0, result.stderr
    assert "body.0" in result.stdout
    assert "left dense: Embedding" in " ".join(result.stdout.split())
    assert "written to" in result.stdout


def test_an_error_is_three_lines(tmp_path):
    result = invoke(tmp_path / "none.safetensors", "--out", tmp_path / "s.safetensors")
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["got", "expected", "next step"]
