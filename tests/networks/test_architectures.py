"""Every named network: its published number of parameters, its shape, its pruning by every way of storing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pollard
from pollard import networks
from pollard.composites import composable, matrices
from pollard.networks.architecture import ARCHITECTURES, CIFAR, MNIST, Ends, scaled
from pollard.networks.residual import ResNet
from pollard.networks.wide_residual import WideResNet

# Parameters, and weights of linear layers and convolutions. Those of the papers are in millions; LeNet's weights are as SNIP's table 1 has them,
# the others what the papers' sizes come to.
COUNTS = {
    "lenet-300-100": (266_610, 266_200),
    "lenet-5-caffe": (431_080, 430_500),
    "vgg-11": (9_228_362, 9_222_848),
    "vgg-16": (14_724_042, 14_715_584),
    "vgg-19": (20_035_018, 20_024_000),
    "resnet-20": (269_722, 268_336),
    "resnet-32": (464_154, 461_872),
    "resnet-56": (853_018, 848_944),
    "resnet-18": (11_173_962, 11_164_352),
    "wrn-16-8": (10_961_370, 10_954_160),
    "wrn-22-2": (1_079_642, 1_076_912),
    "wrn-28-2": (1_467_610, 1_463_984),
    "mobilenet-v1": (3_217_226, 3_195_328),
    "convnext-atto": (3_376_290, 3_357_840),
    "vit-tiny": (5_362_762, 5_319_552),
    "mixer-small": (17_110_026, 17_069_056),
}
# He et al. 2016, table 6; Zagoruyko & Komodakis 2016, table 4.
PUBLISHED = {"resnet-20": 0.27e6, "resnet-32": 0.46e6, "resnet-56": 0.85e6, "wrn-16-8": 11.0e6}
WIDE = [name for name, each in ARCHITECTURES.items() if each.widens]


def counts(model: nn.Module) -> tuple[int, int]:
    held = dict(model.named_parameters())
    weights = [each.numel() for name, each in held.items() if name.endswith("weight") and each.dim() > 1]
    return sum(each.numel() for each in held.values()), sum(weights)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return networks.build(f"{name}-x0.125" if name in WIDE else name, ARCHITECTURES[name].usual)


def test_every_network_is_counted():
    assert COUNTS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        model = ARCHITECTURES[name].make(ARCHITECTURES[name].usual, 1.0)
    assert counts(model) == COUNTS[name]
    if name in PUBLISHED:
        assert counts(model)[0] == pytest.approx(PUBLISHED[name], rel=0.01)


def test_a_wider_wide_residual_network_has_its_published_count_too():
    with torch.device("meta"):
        assert counts(WideResNet(28, 10, CIFAR))[0] == pytest.approx(36.5e6, rel=1e-3)
        # With shortcuts B, projections and their norms are added: 16 x 32 + 32 x 64 weights, 2 x (32 + 64) of norms.
        projected = counts(ResNet((16, 32, 64), 3, CIFAR, projects=True))[0]
    assert projected - COUNTS["resnet-20"][0] == 16 * 32 + 32 * 64 + 2 * (32 + 64)


@pytest.mark.parametrize("name", COUNTS)
def test_a_network_trains(name):
    model = small(name)
    assert all(module.training for module in model.modules())
    x = torch.randn(4, *ARCHITECTURES[name].usual.input_shape, generator=torch.Generator().manual_seed(1))
    logits = model(x)
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_a_network_is_pruned_and_both_storages_compute_the_same(name):
    x = torch.randn(3, *ARCHITECTURES[name].usual.input_shape, generator=torch.Generator().manual_seed(1))
    plan = pollard.prune(small(name), "magnitude", 0.3, allocation="erk")
    assert plan.weights == sum(layer.weight.numel() for layer in matrices(small(name)).values())
    sparse, masked = (pollard.sparsify_(small(name).eval(), plan, storage=way) for way in ("compressed", "masked"))
    torch.testing.assert_close(sparse(x), masked(x), rtol=1e-4, atol=1e-5)


def test_only_convolutions_of_single_channels_stay_dense():
    left = {name: set() for name in COUNTS}
    for name in COUNTS:
        model = small(name)
        held = {part for part, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        prunable = {*composable(model), *(part for part in matrices(model) if part in held)}
        left[name] = held - prunable
        assert all(model.get_submodule(part).groups > 1 for part in left[name])
    assert {name for name, parts in left.items() if parts} == {"mobilenet-v1", "convnext-atto"}


@pytest.mark.parametrize("name", WIDE)
def test_a_factor_widens_every_layer(name):
    ends = ARCHITECTURES[name].usual
    with torch.device("meta"):
        whole, half = (ARCHITECTURES[name].make(ends, width) for width in (1.0, 0.5))
    # Weights between two layers of half the width are a quarter; those at the ends a half.
    assert 0.25 <= counts(half)[1] / counts(whole)[1] < 0.35


def test_a_width_rounds_and_never_vanishes():
    assert [scaled(64, 1.0), scaled(50, 0.33), scaled(16, 0.01)] == [64, 16, 1]


@pytest.mark.parametrize("ends", [MNIST, Ends((3, 64, 64), 100)])
@pytest.mark.parametrize("name", ["resnet-20", "vgg-11", "mobilenet-v1", "mixer-small", "vit-tiny", "lenet-5-caffe"])
def test_other_images_and_classes_are_served(name, ends):
    model = networks.build(f"{name}-x0.125", ends)
    assert model(torch.zeros(2, *ends.input_shape)).shape == (2, ends.classes)
