"""Dense checkpoints for tests: a network with most kinds of layers, in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def network_shape():
    """Convolutions, a norm with counters, an embedding, linear layers with and without bias; in the order of their names."""
    return nn.ModuleDict({
        "body": nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 40, bias=False)), "conv": nn.Conv2d(3, 40, 3),
        "head": nn.Linear(40, 12), "line": nn.Conv1d(4, 8, 5), "norm": nn.BatchNorm2d(40), "wte": nn.Embedding(30, 16),
    })  # fmt: skip


def network(dtype=torch.float32):
    """Those layers, with numbers that are always the same."""
    draw = torch.Generator().manual_seed(0)
    model = network_shape()
    with torch.no_grad():
        for each in model.parameters():
            each.normal_(generator=draw)
    return model.to(dtype)


def saved(model: nn.Module, folder: Path, shards: int = 1) -> Path:
    """The path of the state of `model`: a file, or a folder of as many."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if shards == 1:
        save_file(state, folder / "dense.safetensors")
        return folder / "dense.safetensors"
    where = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(sorted(state))}
    (folder / "dense").mkdir()
    for file in set(where.values()):
        save_file({name: state[name] for name in state if where[name] == file}, folder / "dense" / file)
    (folder / "dense" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder / "dense"


def same(one: nn.Module, other: nn.Module) -> None:
    """Raises AssertionError unless both have the same state, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
