"""The masked layer as others see it: its weight read past it, reset, loaded, moved and copied."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pollard
from pollard.formats.topology import Topology
from pollard.nn.masked import KeptParameter, MaskedLinear

TOPOLOGY = Topology.random((8, 6), 0.3, generator=torch.Generator().manual_seed(0))


def layer() -> MaskedLinear:
    torch.manual_seed(0)
    return MaskedLinear.from_dense(nn.Linear(6, 8), TOPOLOGY)


def encoder(stacked: int) -> nn.Module:
    torch.manual_seed(0)
    one = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(one, stacked) if stacked else one
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3), storage="masked")


@pytest.mark.parametrize("stacked", [0, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("written", [False, True])
def test_torchs_fused_encoder_computes_what_the_layers_do(stacked, padded, written):
    model, x = encoder(stacked), torch.randn(3, 5, 16)
    if written:  # past the mask, as nobody should
        with torch.no_grad():
            for masked in pollard.nn.surgery.sparse_layers(model).values():
                masked.weight += 1.0
    padding = {"src_key_padding_mask": torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [2]])} if padded else {}
    seen = ~padding["src_key_padding_mask"] if padded else torch.ones(3, 5, dtype=torch.bool)
    expected = model.train()(x, **padding)[seen]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, **padding)[seen], expected)


def test_whoever_reads_the_weight_reads_what_the_layer_computes_with():
    masked, x = layer(), torch.randn(3, 6)
    optimizer = torch.optim.AdamW(masked.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        masked(x).square().sum().backward()
        optimizer.step()
    assert nn.functional.linear(x, masked.weight, masked.bias).equal(masked(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_state_brings_nothing_where_nothing_is_kept(assign):
    masked, dense = layer(), nn.Linear(6, 8)
    state = {**masked.state_dict(), **dense.state_dict()}
    masked.load_state_dict(state, assign=assign)
    assert masked.weight.equal(torch.where(TOPOLOGY.mask(), dense.weight, 0.0))
    assert dense.weight.all()
    assert type(masked.weight) is KeptParameter


def test_reset_draws_anew_what_is_kept_and_nothing_else():
    masked = layer().double()
    before, parameter = masked.weight.detach().clone(), masked.weight
    masked.reset_parameters()
    assert masked.weight is parameter
    assert masked.weight.ne(0).equal(TOPOLOGY.mask())
    assert not (masked.weight == before)[TOPOLOGY.mask()].any()
    bound = TOPOLOGY.fan_in().clamp(min=1).rsqrt()[:, None]
    assert (masked.weight.abs() <= bound).all()
    assert masked.bias.detach()[TOPOLOGY.fan_in() == 0].eq(0).all()


def test_the_weight_stays_what_it_is_through_copies_files_dtypes_and_devices():
    for made in (
        copy.deepcopy(layer()),
        pickle.loads(pickle.dumps(layer())),
        layer().half().float(),
        layer().to("meta"),
    ):
        assert type(made.weight) is KeptParameter
        assert isinstance(made.weight, nn.Parameter)
    frozen = layer().requires_grad_(False)
    assert not copy.deepcopy(frozen).weight.requires_grad
    assert not pickle.loads(pickle.dumps(frozen)).weight.requires_grad
