"""Modules that are taken apart and put together: where their parameters lie in memory."""

import pytest
import torch
from torch import nn

import pollard


def held(module):
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in module.parameters()}.values())


@pytest.mark.parametrize("layers", [None, "0.q_proj"])
def test_what_stays_keeps_no_memory_of_what_went(layers):
    model = nn.Sequential(nn.MultiheadAttention(64, 4))
    plan = pollard.prune(model, "magnitude", 0.1)
    pollard.sparsify_(model, plan, layers=layers)
    assert held(model) == sum(each.nbytes for each in model.parameters())


def test_parameters_that_lay_in_one_piece_lie_apart():
    model = nn.Sequential(nn.LSTM(16, 32))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())  # as cuDNN wants them, one behind the other
    biases = {name: each for name, each in model.named_parameters() if "bias" in name}
    numbers = {name: each.clone() for name, each in biases.items()}
    assert held(model) > flat.nbytes
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.1))
    assert held(model) == sum(each.nbytes for each in model.parameters())
    for name, each in model.named_parameters():
        if name in biases:
            assert each is biases[name]
            assert torch.equal(each, numbers[name])


def test_a_recurrent_module_is_laid_out_for_cudnn_again(monkeypatch):
    laid_out = []

    def noted(module):
        laid_out.append(module)

    monkeypatch.setattr(nn.LSTM, "flatten_parameters", noted)
    model = nn.Sequential(nn.LSTM(16, 32))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.1))
    laid_out.clear()
    pollard.densify_(model)
    assert laid_out[-1] is model[0]
    assert all(isinstance(each, nn.Parameter) for each in laid_out[-1].parameters())
