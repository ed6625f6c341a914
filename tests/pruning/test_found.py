"""Networks that are pruned already are made real: zeros, torch's masks, masks at hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pollard
from pollard.errors import InvalidInput, NothingMatched
from pollard.formats.pattern import Pattern


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))


def masked(model, density=0.3, rows=1):
    for layer in (model[0], model[2]):
        out, width = layer.weight.shape
        mask = torch.rand(out // rows, width) < density
        with torch.no_grad():
            layer.weight *= mask.repeat_interleave(rows, 0)
    return model


@pytest.mark.parametrize(("rows", "pattern"), [(1, "unstructured"), (2, "v2"), (8, "v8")])
def test_zeros_are_dropped_and_the_coarsest_pattern_found(rows, pattern):
    model = masked(network(), rows=rows)
    plan = pollard.plan_from_zeros(model)
    assert list(plan) == ["0", "2"]
    assert {str(topology.pattern) for topology in plan.values()} == {pattern}
    assert all(torch.equal(plan.mask(name), model.get_submodule(name).weight != 0) for name in plan)
    x, y = torch.randn(3, 12), None
    y = model(x)
    torch.testing.assert_close(pollard.sparsify_(model, plan)(x), y)
    assert model[0].values.numel() == plan["0"].nnz
    assert isinstance(model[4], nn.Linear)


@pytest.mark.parametrize("pattern", ["b4x2", "b16x4", "b1x4", "2:4", "1:4", "3:4"])
def test_blocks_and_n_of_m_are_found(pattern):
    shape = (32, 64)
    kept = pollard.Topology.random(shape, Pattern.parse(pattern).density or 0.2, pattern)
    model = nn.Sequential(nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight.mul_(kept.mask())
    plan = pollard.plan_from_zeros(model, max_density=0.8)
    assert str(plan["0"].pattern) == pattern
    assert plan["0"].same_as(kept)
    assert pollard.plan_from_masks(model, {"0": kept.mask()})["0"].same_as(kept)


def test_few_weights_say_nothing_of_n_of_m():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]])
    assert str(pollard.plan_from_masks(nn.Sequential(nn.Linear(4, 2)), {"0": mask})["0"].pattern) == "unstructured"


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_what_torch_prunes_is_made_real_in_one_call(storage):
    model = network()
    prune.global_unstructured([(model[0], "weight"), (model[2], "weight")], prune.L1Unstructured, amount=0.7)
    prune.l1_unstructured(model[0], "bias", 0.5)
    # Twice over, as iterative pruning does: torch keeps one hook of several methods.
    prune.l1_unstructured(model[2], "weight", 0.5)
    masks = [model[place].weight_mask.bool() for place in (0, 2)]
    x = torch.randn(3, 12)
    y, bias = model(x), model[0].bias.detach().clone()
    plan = pollard.plan_from_zeros(model)
    assert [torch.equal(plan.mask(name), mask) for name, mask in zip(("0", "2"), masks, strict=True)] == [True, True]
    pollard.sparsify_(model, plan, storage=storage)
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(model[0].bias.detach(), bias)
    model(x).sum().backward()


def test_a_mask_decides_where_a_weight_under_it_is_zero():
    model = network()
    prune.custom_from_mask(model[0], "weight", torch.arange(12).repeat(16, 1) < 4)
    with torch.no_grad():
        model[0].weight_orig[:, 0] = 0.0
    assert pollard.plan_from_zeros(model)["0"].nnz == 16 * 4


def test_a_refused_call_leaves_the_masks_of_torch():
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.8)
    plan = pollard.plan_from_zeros(model)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidInput, match="with hooks"):
        pollard.sparsify_(model, plan)
    assert prune.is_pruned(model[0])


def test_layers_that_are_hardly_sparse_or_all_zero_stay_dense():
    model = masked(network(), density=0.7)
    nn.init.zeros_(model[4].weight)
    with pytest.raises(
        NothingMatched, match=r"densities '0' 0\.[67]\d*, '2' 0\.\d+, '4' 0; expected a layer of which at most 0\.5"
    ):
        pollard.plan_from_zeros(model)
    assert list(pollard.plan_from_zeros(model, max_density=0.9)) == ["0", "2"]
    assert list(pollard.plan_from_zeros(model, max_density=0.9, layers="2")) == ["2"]


@pytest.mark.parametrize("key", ["2", "2.weight", "2.weight_mask", "2.mask"])
def test_masks_under_the_names_that_people_give_them(key):
    model = network()
    mask = torch.rand(8, 16) < 0.4
    for given in (mask, mask.float(), mask.to(torch.uint8)):
        plan = pollard.plan_from_masks(model, {key: given})
        assert torch.equal(plan.mask("2"), mask)
    assert plan.coverage.sparse == 1


def test_masks_that_do_not_fit():
    model, mask = network(), torch.ones(8, 16)
    with pytest.raises(InvalidInput, match=r"of shape \(16, 8\).* expected shape \(8, 16\)"):
        pollard.plan_from_masks(model, {"2": mask.t()})
    with pytest.raises(InvalidInput, match="True or 1 where it is kept"):
        pollard.plan_from_masks(model, {"2": 0.5 * mask})
    with pytest.raises(InvalidInput, match="two masks of layer '2'"):
        pollard.plan_from_masks(model, {"2": mask, "2.weight": mask})
    with pytest.raises(NothingMatched, match="'3', which matches no layer"):
        pollard.plan_from_masks(model, {"3.weight": mask})
