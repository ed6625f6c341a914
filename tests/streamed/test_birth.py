"""Weights that are born without memory: which, with what numbers, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import init

import pollard
from pollard.errors import InvalidInput
from pollard.streamed.tensor import StreamedTensor


class Own(nn.Linear):
    """A subclass, which may read its weight in its own way."""


def weight(draw, shape=(400, 300), seed=0):
    with pollard.never_dense(seed):
        layer = nn.Linear(shape[1], shape[0])
        draw(layer.weight)
    return layer.weight.to_dense()


def test_weights_of_linear_layers_and_convolutions_have_no_memory_and_all_else_is_as_ever():
    with pollard.never_dense(0):
        streamed = [nn.Linear(3, 4), nn.Conv1d(3, 4, 5), nn.Conv2d(3, 4, 5), nn.Conv3d(3, 4, 5)]
        plain = [
            nn.Conv2d(4, 4, 3, groups=4), Own(3, 4), nn.Embedding(5, 3), nn.MultiheadAttention(4, 2), nn.LSTM(3, 4),
            nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(3),
        ]  # fmt: skip
        plain.append(nn.Linear(3, 4, device="meta"))
        with torch.device("meta"):
            plain.append(nn.Linear(3, 4))
        loose = torch.empty(3, 4), torch.tril(torch.ones(3, 3))
    for layer in streamed:
        assert isinstance(layer.weight, StreamedTensor)
        assert isinstance(layer.weight, nn.Parameter)
        assert layer.weight.requires_grad
        assert type(layer.bias) is nn.Parameter
    assert streamed[2].weight.shape == (4, 3, 5, 5)
    assert not any(isinstance(each, StreamedTensor) for module in plain for each in module.parameters())
    assert not any(isinstance(each, StreamedTensor) for each in loose)
    assert type(nn.Linear(3, 4).weight) is nn.Parameter


def test_a_network_of_ten_trillion_weights_is_born_at_once():
    with pollard.never_dense(0):
        model = nn.Sequential(nn.Linear(10**6, 10**7), nn.ReLU(), nn.Linear(10**7, 10, bias=False))
    assert model[0].weight.numel() == 10**13
    assert model[0].weight.block(5, 6).abs().max() <= 1e-3


def test_the_seed_decides_every_number_and_torch_s_own_generator_comes_back():
    def born(seed):
        with pollard.never_dense(seed):
            model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
        return model, [each.to_dense() for each in model.parameters()]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    _, first = born(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, born(1)[1]))
    assert not any(map(torch.equal, first, born(2)[1]))
    assert not torch.equal(first[0].view(-1)[:600], first[2].view(-1)[:600])
    # Without a seed, torch's own decides.
    torch.manual_seed(5)
    (_, one), (_, other) = born(None), born(None)
    assert not torch.equal(one[0], other[0])
    torch.manual_seed(5)
    assert all(map(torch.equal, one, born(None)[1]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda w: None, init.xavier_uniform_, init.xavier_normal_, init.kaiming_normal_, init.kaiming_uniform_, init.zeros_, init.ones_,
        lambda w: init.normal_(w, 0.5, 0.02), lambda w: init.uniform_(w, -2, 5), lambda w: init.constant_(w, 0.25),
        lambda w: w.data.normal_(0.0, 3.0).mul_(2).add_(1), lambda w: w.data.uniform_().sub_(0.5).abs_(),
        lambda w: init.trunc_normal_(w, std=0.02), lambda w: init.trunc_normal_(w, 0.1, 0.5, -0.4, 0.3),
        lambda w: init.trunc_normal_(w, std=1.0, a=1.0, b=1.5),
    ],
)  # fmt: skip
def test_initialisers_draw_from_the_law_that_they_draw_ordinary_weights_from(draw):
    torch.manual_seed(0)
    ordinary = nn.Linear(300, 400).weight.requires_grad_(False)
    draw(ordinary)
    made, deviation = weight(draw).flatten(), ordinary.std()
    assert made.mean() == pytest.approx(float(ordinary.mean()), abs=0.02 * float(deviation) + 1e-6)
    assert made.std() == pytest.approx(float(deviation), rel=0.02, abs=1e-6)
    at = torch.linspace(0.01, 0.99, 21)
    assert torch.allclose(
        made[::3].quantile(at), ordinary.detach().flatten()[::3].quantile(at), atol=0.06 * float(deviation) + 1e-6
    )


def test_only_the_last_draw_counts_and_what_came_before_is_forgotten():
    twice = weight(lambda w: init.uniform_(init.normal_(w), -1, 1))
    assert torch.equal(twice, weight(lambda w: init.uniform_(w, -1, 1)))


def test_variance_scaling_as_snip_s_authors_have_it():
    deviation = math.sqrt(1 / 300) / 0.87962566
    made = weight(lambda w: init.trunc_normal_(w, std=deviation, a=-2 * deviation, b=2 * deviation))
    assert made.std() == pytest.approx(math.sqrt(1 / 300), rel=0.01)
    assert made.abs().max() <= 2 * deviation


@pytest.mark.parametrize(
    "draw", [init.orthogonal_, init.eye_, lambda w: init.sparse_(w, 0.5), lambda w: w.data[0].zero_()]
)
def test_initialisers_that_look_at_more_than_one_number_are_refused_and_say_what_serves(draw):
    with pytest.raises(InvalidInput, match="initialiser that draws each number by itself"):
        weight(draw)


def test_a_weight_that_nobody_initialised_says_so():
    with pollard.never_dense(0):
        layer = nn.Linear(3, 4)
    layer.weight.source.steps = ()
    with pytest.raises(InvalidInput, match="never initialised"):
        layer.weight.to_dense()


def test_densify_gives_memory_and_changes_no_number():
    with pollard.never_dense(0):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    numbers = [model[0].weight.to_dense(), model[2].weight.to_dense()]
    model[2].weight.requires_grad_(False)
    assert pollard.densify_(model, layers="2") is model
    assert [type(model[0].weight).__name__, type(model[2].weight)] == ["StreamedTensor", nn.Parameter]
    pollard.densify_(model)
    assert all(map(torch.equal, numbers, [model[0].weight, model[2].weight]))
    assert [model[0].weight.requires_grad, model[2].weight.requires_grad] == [True, False]
