"""What a measurement says it takes, beside torch's own count of what it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from networks import generator
from pollard.pruning.measurements import COSTS, MEASUREMENTS
from pollard.pruning.network import Network

SAMPLES, OUTPUTS = 40, 10


@pytest.fixture
def network():
    """Nearly all of its weights have inputs that gradients flow on to: those of the first layer do not, which costs count all the same."""
    torch.manual_seed(0)
    widths = [nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    model = nn.Sequential(*widths, nn.Linear(128, OUTPUTS))
    batch = torch.randn(SAMPLES, 2), torch.randint(0, OUTPUTS, (SAMPLES,))
    return Network(model, ["0", "2", "4", "6"], batch, generator=generator())


def apart(name, weights, network):
    """What torch counts beside the passes, and what of them it does not count."""
    # Whether samples can be told apart is found by passing one, and two.
    first = -3 * weights if name in ("sample_gradients", "fisher_diagonal", "gauss_newton_diagonal") else 0
    products = (
        -SAMPLES * sum(weight.shape[1] ** 2 for weight in network.weights.values()) if name == "input_gram" else 0
    )
    # Of one position, outer products are done element by element.
    outer = SAMPLES * weights if name == "sample_gradients" else 0
    return first + products + outer


@pytest.mark.parametrize("name", sorted(COSTS))
def test_a_measurement_takes_what_it_says(network, name):
    weights = sum(weight.numel() for weight in network.weights.values())
    with network.undisturbed(), FlopCounterMode(display=False) as counter:
        MEASUREMENTS[name](network)
    done = counter.get_total_flops() / 2
    done += apart(name, weights, network)
    assert COSTS[name](SAMPLES, OUTPUTS) == pytest.approx(done / (3 * weights), rel=0.02)


def test_all_of_ours_say_it():
    ours = {name for name, function in MEASUREMENTS.items() if function.__module__.startswith("pollard.")}
    assert ours == COSTS.keys()
