"""Sparse layers come out of a state, whatever holds it, and what does not fit is refused with nothing replaced."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput, NothingMatched, PollardError, StoreError
from pollard.formats import save_tensors


def dense(bias=True):
    return nn.Sequential(nn.Linear(8, 16, bias), nn.BatchNorm1d(16), nn.Linear(16, 4, bias))


def trained(density=0.3, pattern="unstructured", bias=True):
    model = dense(bias)
    plan = pollard.prune(model, "random", density, pattern=pattern, generator=torch.Generator().manual_seed(1))
    return pollard.sparsify_(model, {name: plan[name] for name in ("0",)}).eval()


X = torch.linspace(-1, 1, 40).view(5, 8)


def assert_same(made, model):
    assert type(made[0]) is pollard.nn.SparseLinear
    assert type(made[2]) is nn.Linear
    assert made[0].topology.same_as(model[0].topology)
    assert torch.equal(made.eval()(X), model(X))


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_model_becomes_what_was_saved(pattern, bias):
    model = trained(0.3, pattern, bias)
    made = pollard.load_sparse(dense(bias), model.state_dict())
    assert_same(made, model)
    made[0].values.data.zero_()
    assert model[0].values.abs().sum() > 0


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.module.", "net.0."])
def test_a_prefix_that_all_share_is_left_out(prefix):
    model = trained()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    assert_same(pollard.load_sparse(dense(), {"state_dict": state, "epoch": 3}), model)
    with pytest.raises(PollardError):
        pollard.load_sparse(dense(), {**state, "loss.weight": torch.ones(2)})
    assert_same(pollard.load_sparse(dense(), {**state, "loss.weight": torch.ones(2)}, prefix=prefix), model)


def test_a_sparse_model_takes_another_number_of_weights():
    model, made = trained(0.3), trained(0.1)
    assert_same(pollard.load_sparse(made, model.state_dict()), model)


def shards(state):
    names = sorted(state)
    Path("kept").mkdir()
    weight_map = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_tensors(Path("kept") / file, {name: state[name] for name in names if weight_map[name] == file}, {})
    Path("kept/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return "kept"


def distributed(state):
    import torch.distributed.checkpoint as dcp  # loads slowly

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is ")
        dcp.save(dict(state), checkpoint_id="kept", no_dist=True)
    return "kept"


def saved(state):
    torch.save(state, "kept.pt")
    return "kept.pt"


def plain(state):
    save_tensors("kept.safetensors", state, {})
    return "kept.safetensors"


@pytest.mark.parametrize("save", [shards, distributed, saved, plain])
def test_every_kind_of_file_is_read(save):
    model = trained()
    assert_same(pollard.load_sparse(dense(), save(model.state_dict())), model)


def test_a_flipped_bit_of_our_own_file_is_refused():
    plain(trained().state_dict())
    content = bytearray(Path("kept.safetensors").read_bytes())
    content[-3] ^= 4
    Path("kept.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="digest"):
        pollard.load_sparse(dense(), "kept.safetensors")


@pytest.mark.parametrize("content", [b"", b"noise", b"PK\x03\x04" + bytes(50)])
@pytest.mark.parametrize("name", ["kept.pt", "kept.safetensors", "kept/.metadata", "kept/model.safetensors.index.json"])
def test_what_is_no_state_is_refused(name, content):
    Path("kept").mkdir()
    Path(name).write_bytes(content)
    with pytest.raises(StoreError):
        pollard.load_sparse(dense(), name if "/" not in name else "kept")


def test_a_pickle_that_runs_code_is_refused():
    torch.save({"0.values": Path("x")}, "kept.pt")
    with pytest.raises(StoreError):
        pollard.load_sparse(dense(), "kept.pt")


def test_no_dense_weight_is_made_on_the_meta_device():
    model = trained()
    with torch.device("meta"):
        made = dense()
    made = pollard.load_sparse(made, {k: v.clone() for k, v in model.state_dict().items()})
    assert not any(tensor.is_meta for tensor in made.state_dict().values())
    assert_same(made, model)


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3, layers="body"))
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    for device in ("cpu", "meta"):
        with torch.device(device):
            made = Tied()
        pollard.load_sparse(made, state)
        assert made.head.weight is made.embed.weight
        assert torch.equal(made.head.weight, model.head.weight)


@pytest.mark.parametrize("change", ["columns", "missing", "unexpected", "shape", "name"])
def test_what_does_not_fit_leaves_the_layers_as_they_were(change):
    state = dict(trained().state_dict())
    if change == "columns":
        state["0.columns"] = state["0.columns"] + 100
    elif change == "missing":
        del state["2.weight"]
    elif change == "unexpected":
        state["3.weight"] = torch.ones(1)
    elif change == "shape":
        state["0.row_pointers"] = torch.zeros(6, dtype=torch.int32)
    else:
        state = {name.replace("0.", "7."): tensor for name, tensor in state.items()}
    model = dense()
    layers = [id(module) for module in model.modules()]
    with pytest.raises(InvalidInput):
        pollard.load_sparse(model, state)
    assert [id(module) for module in model.modules()] == layers


def test_a_state_without_a_sparse_layer_says_what_to_use():
    with pytest.raises(InvalidInput, match="load_state_dict"):
        pollard.load_sparse(dense(), copy.deepcopy(dense()).state_dict())


def test_names_of_a_file_that_are_not_the_models_say_how_to_go_on():
    state = {f"encoder.{name}": tensor for name, tensor in trained().state_dict().items()} | {"other": torch.ones(1)}
    with pytest.raises(NothingMatched, match="under the model's names"):
        pollard.load_sparse(dense(), state)


def test_a_transformer_comes_back_from_its_folder():
    transformers = pytest.importorskip("transformers")
    told = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
    )
    model = transformers.LlamaForCausalLM(told).eval()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.2, layers=["*proj"]))
    model.save_pretrained("kept")
    made = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained("kept")).eval()
    pollard.load_sparse(made, "kept")
    tokens = torch.arange(10)[None]
    assert torch.equal(made(tokens).logits, model(tokens).logits)


def test_a_state_within_a_checkpoint_is_pointed_at():
    with pytest.raises(InvalidInput, match="Pass what it holds under 'model', which has some"):
        pollard.load_sparse(dense(), {"epoch": 3, "model": trained().state_dict()})


def test_a_whole_model_in_a_file_is_told_from_its_state():
    torch.save(trained(), "whole.pt")
    with pytest.raises(StoreError, match=r"other things than tensors.*Save model\.state_dict\(\), not the model"):
        pollard.load_sparse(dense(), "whole.pt")
