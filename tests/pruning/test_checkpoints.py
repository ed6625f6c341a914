"""A checkpoint is pruned from file to file as its model would be, weight for weight, in memory of what is kept."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pollard
from checkpoints import network, network_shape, same, saved
from pollard.errors import InvalidInput, LayerCollapse, LeftDense, NothingMatched, StoreError
from pollard.formats.entries import Entry
from pollard.formats.store import load_tensors
from pollard.pruning.criteria import criterion
from pollard.streamed import source, stored

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True, params=[1 << 21, 1])
def room(request, monkeypatch):
    """Weights that fit a block, and such that take many."""
    for module in (source, stored):
        monkeypatch.setattr(module, "ROOM", request.param)


def seeded():
    return torch.Generator().manual_seed(7)


def both(tmp_path, dtype=torch.float32, shards=1, **asked):
    """What the file path and the dense path make: two models with their plans."""
    dense, out = network(dtype), tmp_path / "sparse.safetensors"
    made = pollard.prune_checkpoint(saved(dense, tmp_path, shards), out, generator=seeded(), **asked)
    plan = pollard.prune(dense, asked.pop("criterion", "magnitude"), generator=seeded(), **asked)
    pollard.sparsify_(dense, plan)
    return (pollard.load_sparse(network(dtype), out), made), (dense, plan)


CHOICES = {
    "magnitude": {"density": 0.2},
    "random": {"criterion": "random", "density": 0.2},
    "global": {"density": 0.1, "allocation": "global"},
    "uniform, grains": {"density": 0.25, "allocation": "uniform", "pattern": {"*": "v4", "conv": "unstructured"}},
    "n of m": {"pattern": "2:4", "layers": ["body", "head"]},
    "bounds": {"density": 0.2, "min_density": {"head": 0.9}},
    "the lowest": {"density": 0.2, "invert": True},
    "named": {"density": 0.5, "layers": ["conv", "body.2"]},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_file_is_what_the_dense_path_keeps(tmp_path, choice):
    (made, plan), (dense, expected) = both(tmp_path, **CHOICES[choice])
    assert list(plan) == list(expected)
    assert all(plan[name].same_as(expected[name]) for name in plan)
    same(made, dense)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_in_one_file_and_in_shards(tmp_path, dtype, shards):
    (made, _), (dense, _) = both(tmp_path, dtype, shards, density=0.2)
    same(made, dense)
    assert made["head"].values.dtype == dtype


def test_what_is_not_pruned_is_copied_and_others_read_the_file(tmp_path):
    state = network().state_dict() | {
        "odd.flags": torch.tensor([True, False, True]), "odd.weight": torch.arange(6).view(2, 3), "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4), "odd.narrow": torch.ones(3, dtype=torch.bfloat16), "weight": torch.ones(2, 2),
    }  # fmt: skip
    save_file(state, tmp_path / "d.safetensors")
    plan = pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.3)
    assert list(plan) == ["body.0", "body.2", "conv.linear", "head", "line.linear"]
    made, metadata = load_tensors(tmp_path / "s.safetensors")
    assert metadata == {"criterion": "magnitude", "allocation": "erk", "asked": 0.3}
    pruned = {f"{name.removesuffix('.linear')}.weight" for name in plan}
    assert pruned.isdisjoint(made)
    for name in state.keys() - pruned:
        assert made[name].dtype == state[name].dtype
        assert torch.equal(made[name], state[name])
    theirs = load_file(tmp_path / "s.safetensors")
    assert made.keys() == theirs.keys()
    assert all(torch.equal(each, theirs[name]) for name, each in made.items())
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert list(file.metadata()) == ["pollard"]


def test_a_model_on_the_meta_device_takes_the_file(tmp_path):
    (made, _), _ = both(tmp_path, density=0.2)
    with torch.device("meta"):
        empty = network_shape()
    same(pollard.load_sparse(empty, tmp_path / "sparse.safetensors"), made)


def test_layers_come_in_the_order_of_their_numbers(tmp_path):
    save_file({f"{i}.weight": torch.randn(4, 4) for i in (0, 2, 10)}, tmp_path / "d.safetensors")
    plan = pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.5)
    assert list(plan) == ["0", "2", "10"]


def test_embeddings_stay_unless_they_are_named_in_full(tmp_path):
    state = {
        "tok_emb.weight": torch.randn(8, 4),
        "patch_embed.proj.weight": torch.randn(4, 2, 3, 3),
        "a.weight": torch.randn(4, 8),
    }
    save_file(state, tmp_path / "d.safetensors")
    names = [
        list(
            pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.5, layers=layers)
        )
        for layers in (None, "*", ["tok_emb", "a"])
    ]
    assert names == [["a", "patch_embed.proj.linear"]] * 2 + [["a", "tok_emb"]]


def test_a_checkpoint_that_mostly_stays_dense_says_so(tmp_path):
    save_file({"wte.weight": torch.randn(100, 8), "a.weight": torch.randn(8, 8)}, tmp_path / "d.safetensors")
    with pytest.warns(LeftDense, match="Embedding"):
        plan = pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.5)
    assert plan.coverage.left == {"Embedding": 1}


def test_a_criterion_of_one_s_own_looks_at_weights(tmp_path):
    @criterion(needs=("weight",), by_row=True)
    def smallest(*, weight):
        return 1 / (1 + weight.abs())

    (made, _), (dense, _) = both(tmp_path, criterion=smallest, density=0.2)
    same(made, dense)


def test_somebody_who_watches_is_told_of_all_bytes_once(tmp_path):
    seen = []
    path = saved(network(), tmp_path)
    pollard.prune_checkpoint(path, tmp_path / "s.safetensors", density=0.2, watch=lambda *told: seen.append(told))
    stages = list(dict.fromkeys(what for what, _, _ in seen))
    assert stages == ["scoring", "writing"]
    for stage in stages:
        done = [done for what, done, _ in seen if what == stage]
        assert done == sorted(done)
        assert max(done) <= {total for what, _, total in seen if what == stage}.pop()
    assert seen[-1][2] == sum(each.nbytes for each in load_file(path).values())


REFUSED = {
    "a criterion that needs data": (lambda path: {"criterion": "snip"}, InvalidInput, "load_streamed_"),
    "no such criterion": (lambda path: {"criterion": "largest"}, InvalidInput, "magnitude, random"),
    "no such layer": (lambda path: {"layers": "tail"}, NothingMatched, "tail"),
    "a density above 1": (lambda path: {"density": 2.0}, InvalidInput, "density"),
    "a pattern that does not fit": (lambda path: {"pattern": "v16"}, InvalidInput, "layer"),
    "its own file": (lambda path: {"out": path}, InvalidInput, "another file"),
    "no folder": (lambda path: {"out": path.parent / "none" / "s.safetensors"}, StoreError, "Create the folder"),
    "a folder": (lambda path: {"out": path.parent}, StoreError, "path of a file"),
    "no file": (lambda path: {"path": path.parent / "none.safetensors"}, StoreError, "No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, case):
    make, error, told = REFUSED[case]
    path = saved(network(), tmp_path)
    before = path.read_bytes()
    asked = {"path": path, "out": tmp_path / "s.safetensors", "density": 0.2} | make(path)
    with pytest.raises(error, match=told):
        pollard.prune_checkpoint(**asked)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "state", [{"a.bias": torch.ones(3)}, {"wte.weight": torch.ones(3, 2)}, {"a.weight": torch.ones(2, 2).int()}]
)
def test_a_file_without_a_matrix_is_told_what_one_is(tmp_path, state):
    save_file(state, tmp_path / "d.safetensors")
    with pytest.raises(NothingMatched, match=r"NAME\.weight"):
        pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors")


def test_names_that_no_module_can_have_are_refused(tmp_path):
    save_file({"forward.weight": torch.ones(2, 2)}, tmp_path / "d.safetensors")
    with pytest.raises(StoreError, match="no model of torch"):
        pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors")


def test_nan_names_the_layer(tmp_path):
    state = network().state_dict()
    state["head.weight"][3, 4] = torch.nan
    save_file(state, tmp_path / "d.safetensors")
    with pytest.raises(InvalidInput, match="'head'"):
        pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoreError])
def test_whatever_stops_the_writing_leaves_what_was_there(tmp_path, monkeypatch, stop):
    path, out = saved(network(), tmp_path), tmp_path / "s.safetensors"
    out.write_bytes(b"before")

    def told(what, done, total):
        if what == "writing" and done > total // 2:
            raise stop if stop is KeyboardInterrupt else stop("a", "b", "c")

    with pytest.raises(stop):
        pollard.prune_checkpoint(path, out, density=0.2, watch=told)
    assert out.read_bytes() == b"before"
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, out.name]


def test_a_collapsed_layer_warns_and_loads(tmp_path):
    save_file({"a.weight": torch.full((4, 4), 1e-6), "b.weight": torch.ones(4, 4)}, tmp_path / "d.safetensors")
    with pytest.warns(LayerCollapse, match="'a'"):
        pollard.prune_checkpoint(
            tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.5, allocation="global"
        )
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "ab"})
    assert pollard.load_sparse(model, tmp_path / "s.safetensors")["a"].values.numel() == 0


def test_a_piece_is_all_that_is_read_at_once(tmp_path, monkeypatch):
    sizes, read = [], Entry.read
    monkeypatch.setattr(
        Entry, "read", lambda entry, first, last: sizes.append(last - first) or read(entry, first, last)
    )
    monkeypatch.setattr("pollard.formats.entries.PIECE", 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftDense)
        pollard.prune_checkpoint(saved(network(), tmp_path), tmp_path / "s.safetensors", density=0.2)
    # Blocks are of 32 rows at least.
    assert max(sizes) <= max(64, 32 * 96) if source.ROOM == 1 else 96 * 40


def test_matrices_of_gpt_2_are_pruned_as_in_memory(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel  # slow to import

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 8}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    dense = GPT2LMHeadModel(config).eval()
    dense.save_pretrained(tmp_path / "dense")
    plan = pollard.prune_checkpoint(tmp_path / "dense", tmp_path / "sparse.safetensors", density=0.2, pattern="v4")
    expected = pollard.prune(dense, "magnitude", 0.2, layers=["transformer.h"], pattern="v4")
    assert plan.keys() == expected.keys()
    assert all(plan[name].same_as(expected[name]) for name in expected)
    pollard.sparsify_(dense, expected)
    made = pollard.load_sparse(GPT2LMHeadModel(config).eval(), tmp_path / "sparse.safetensors")
    tokens = torch.arange(8).view(1, 8)
    assert torch.equal(made(tokens).logits, dense(tokens).logits)


def test_a_square_matrix_is_turned_only_where_others_of_its_name_are(tmp_path):
    state = {"a.c_proj": (6, 6), "b.c_proj": (6, 4), "a.other": (6, 6), "b.other": (4, 6)}
    tensors = {f"{name}.weight": torch.randn(shape) for name, shape in state.items()}
    tensors |= {"a.c_proj.bias": torch.ones(6), "b.c_proj.bias": torch.ones(4)}
    tensors |= {"a.other.bias": torch.ones(6), "b.other.bias": torch.ones(4)}
    save_file(tensors, tmp_path / "d.safetensors")
    plan = pollard.prune_checkpoint(tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.5)
    assert list(plan) == ["a.c_proj.linear", "a.other", "b.c_proj.linear", "b.other"]
    assert plan["b.c_proj.linear"].shape == (4, 6)


def test_each_byte_of_a_turned_matrix_is_told_once(tmp_path):
    save_file({"a.weight": torch.randn(64, 40), "a.bias": torch.ones(40)}, tmp_path / "d.safetensors")
    told = []
    pollard.prune_checkpoint(
        tmp_path / "d.safetensors", tmp_path / "s.safetensors", density=0.5, watch=lambda *each: told.append(each)
    )
    scoring = [(done, total) for what, done, total in told if what == "scoring"]
    assert scoring[-1] == (64 * 40 * 4, 64 * 40 * 4)
    if source.ROOM == 1:  # blocks of 32 rows of the transpose, and of 8
        assert scoring[-2:] == [(64 * 32 * 4, 64 * 40 * 4), (64 * 40 * 4, 64 * 40 * 4)]


PEAK = """
import resource, sys, torch, pollard
from pollard.streamed.source import Constant
from pollard.streamed.tensor import StreamedTensor
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
# What torch loads for tensors like these, and the kernels that rank.
small = torch.nn.Parameter(StreamedTensor(Constant((2, 2), torch.float32, 1.0)))
import pollard.pruning.checkpoints
before = peak()
pollard.prune_checkpoint(sys.argv[1], sys.argv[2], "magnitude", 0.01, allocation=sys.argv[3])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("allocation", ["erk", "global"])
def test_peak_memory_is_a_small_part_of_the_file(tmp_path, allocation):
    if source.ROOM == 1:
        pytest.skip("the room of a block is set in this process alone")
    rows, layers, path = 5120, 4, tmp_path / "d.safetensors"
    size = rows * rows * 4
    header = json.dumps({
        f"l{i}.weight": {"dtype": "F32", "shape": [rows, rows], "data_offsets": [i * size, (i + 1) * size]} for i in range(layers)
    }).encode()  # fmt: skip
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for block in range(layers * 16):
            file.write(torch.randn(rows // 16, rows, generator=torch.Generator().manual_seed(block)).numpy().data)
    command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "s.safetensors"), allocation]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < path.stat().st_size / 3
    assert Path(tmp_path / "s.safetensors").stat().st_size < 0.03 * path.stat().st_size
