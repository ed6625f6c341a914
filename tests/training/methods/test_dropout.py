"""What dropout drops is the same in both storages, and so topologies are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pollard

X = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.mean((2, 3)).argmax(1)


def connected():
    features = [nn.Flatten(), nn.Linear(108, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 20), nn.GELU()]
    return nn.Sequential(*features, nn.AlphaDropout(0.2), nn.Linear(20, 3))


def normed():
    features = [nn.Flatten(), nn.Linear(108, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*features, nn.Linear(40, 3))


def convolutional():
    features = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 8, 3), nn.Dropout2d(0.3), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(32, 16), nn.Dropout(0.3), nn.Linear(16, 3))


def trained(build, method, storage, x):
    torch.manual_seed(0)
    model = build().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparse = pollard.sparse_training(model, optimizer, method, density=0.3, steps=24, every=4, storage=storage, seed=1)
    losses = []
    for step in range(24):
        chosen = torch.arange(16 * step, 16 * step + 16) % len(x)
        sparse.zero_grad()
        loss = nn.functional.cross_entropy(model(x[chosen]), Y[chosen])
        loss.backward()
        sparse.step()
        losses.append(loss.item())
    return losses, [weight.topology.fingerprint for weight in sparse.weights.values()]


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("build", [connected, normed, convolutional])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_masked_and_compressed_training_drop_alike(build, method, order):
    x = X.to(memory_format=order)
    losses, topologies = trained(build, method, "compressed", x)
    expected, held = trained(build, method, "masked", x)
    torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-9)
    assert topologies == held
