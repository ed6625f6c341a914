from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from rich.console import Console
from torch import nn

from pollard.errors import InvalidInput, NothingMatched, StoreError
from pollard.formats.topology import Topology
from pollard.pruning import Plan, prune, shuffle


@pytest.fixture
def plan() -> Plan:
    topologies = {
        "body": Topology.random((8, 6), 0.25, "v4", torch.Generator().manual_seed(0)),
        "head": Topology.from_mask(torch.zeros(3, 8, dtype=torch.bool)),
    }
    return Plan(topologies, criterion="snip", allocation="global", asked=0.15)


def test_is_a_mapping_of_topologies(plan):
    assert list(plan) == ["body", "head"]
    assert len(plan) == 2
    assert "tail" not in plan
    assert plan["body"].shape == (8, 6)
    with pytest.raises(KeyError):
        plan["tail"]


def test_counts(plan):
    assert (plan.nnz, plan.weights, plan.density) == (12, 72, 12 / 72)
    assert plan.collapsed == ("head",)
    assert int(plan.mask("body").sum()) == 12


def test_a_layer_that_is_not_planned_is_named_with_the_nearest(plan):
    with pytest.raises(NothingMatched, match=r"'heed', which matches no layer; expected one of 'head'"):
        plan.mask("heed")


def test_cannot_be_changed(plan):
    with pytest.raises(TypeError):
        plan.topologies["body"] = plan["head"]
    with pytest.raises(AttributeError):
        plan.asked = 1.0


def test_a_plan_does_not_follow_the_mapping_it_was_made_from(plan):
    source = dict(plan)
    made = Plan(source)
    del source["head"]
    assert list(made) == ["body", "head"]


@pytest.mark.parametrize("topologies", [{}, {"fc": torch.ones(2, 2)}])
def test_other_than_topologies_is_refused(topologies):
    with pytest.raises(InvalidInput, match="a plan of"):
        Plan(topologies)


def test_prints_as_one_line(plan):
    assert repr(plan) == "Plan(2 layers, 12 of 72 weights kept, density 0.1667)"
    assert repr(Plan({"fc": plan["body"]})) == "Plan(1 layer, 12 of 48 weights kept, density 0.25)"


def test_prints_as_a_table(plan):
    console = Console(width=100, file=io.StringIO())
    console.print(plan)
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines() if "│" in line]
    assert "Plan: criterion snip, allocation global, asked 0.15" in text
    assert rows == [
        ["body", "8 x 6", "v4", "0.2500", "12"],
        ["head", "3 x 8", "unstructured", "0.0000", "0 (collapsed)"],
        ["total", "72 weights", "", "0.1667", "12"],
    ]


def told(plan: Plan) -> tuple[object, ...]:
    return plan.criterion, plan.allocation, plan.asked, {name: plan[name].fingerprint for name in plan}


def test_survives_saving_copying_and_pickling(plan, tmp_path):
    plan.save(tmp_path / "plan.safetensors")
    for made in (Plan.load(tmp_path / "plan.safetensors"), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert told(made) == told(plan)
        assert list(made) == list(plan)


def test_a_plan_made_by_hand_has_no_provenance_and_saves_all_the_same(plan, tmp_path):
    by_hand = Plan(dict(plan))
    by_hand.save(tmp_path / "plan.safetensors")
    assert told(Plan.load(tmp_path / "plan.safetensors"))[:3] == (None, None, None)


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    (tmp_path / "plan.safetensors").write_bytes(b"not a plan")
    with pytest.raises(StoreError):
        Plan.load(tmp_path / "plan.safetensors")
    with pytest.raises(StoreError):
        Plan.load(tmp_path / "missing.safetensors")


def covered() -> Plan:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(40, 20))
    return prune(model, "magnitude", 0.5)


def test_a_printed_table_is_text_and_says_what_is_left_dense(plan):
    text = str(plan.table())
    assert "body" in text
    assert "8 x 6" in text
    assert "left dense: Embedding" in str(covered().table())


def test_a_notebook_shows_the_same_and_runs_nothing(plan):
    shown = Plan({"<b>fc</b>": plan["body"]})._repr_html_()
    assert "&lt;b&gt;fc&lt;/b&gt;" in shown
    assert "<b>" not in shown
    assert "12" in shown
    assert "left dense: Embedding" in covered()._repr_html_()


def test_coverage_survives_saving_copying_and_what_is_made_of_the_plan(tmp_path):
    made = covered()
    made.save(tmp_path / "plan.safetensors")
    for again in (Plan.load(tmp_path / "plan.safetensors"), pickle.loads(pickle.dumps(made)), shuffle(made)):
        assert again.coverage == made.coverage
        assert "left dense: Embedding" in repr(again)
