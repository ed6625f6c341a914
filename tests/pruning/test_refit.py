from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import BATCH, lenet
from pollard import sparsify_
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.pruning import Plan, prune, refit, shuffle
from pollard.pruning.criteria.reconstruction import hessian


def dense(plan, name):
    return SparseMatrix(plan.updated[name], plan[name]).to_dense()


def layer_inputs(model):
    found, x = {}, BATCH[0]
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            found[name] = x.detach().double()
        x = module(x)
    return found


@pytest.mark.parametrize("pattern", ["unstructured", "v2", "b2x2", "1:2"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_kept_weights_are_the_damped_least_squares_of_every_row(pattern, criterion):
    """As augmented rows: sqrt(2 / n) X on top of the damping's root, solved by QR."""
    model = lenet()
    plan = prune(model, criterion, 0.5 if ":" in pattern else 0.4, BATCH, pattern=pattern)
    fitted = refit(plan, model, BATCH)
    for name, inputs in layer_inputs(model).items():
        gram = inputs.T @ inputs / len(inputs)
        damp = (hessian(gram) - 2 * gram).diagonal().sqrt()
        system = torch.cat([(2 / len(inputs)) ** 0.5 * inputs, torch.diag(damp)])
        weight = model.get_submodule(name).weight.detach().double()
        for row, kept, found in zip(weight, plan.mask(name), dense(fitted, name), strict=True):
            best = torch.linalg.lstsq(system[:, kept], (system @ row)[:, None]).solution[:, 0]
            torch.testing.assert_close(found[kept].double(), best, rtol=1e-3, atol=1e-5)
    assert all(fitted[name].same_as(plan[name]) for name in plan)
    assert (fitted.criterion, fitted.allocation, fitted.asked) == (plan.criterion, plan.allocation, plan.asked)


def test_what_was_adapted_before_does_not_count():
    model = lenet()
    plan = prune(model, "sparsegpt", 0.3, BATCH)
    one, other = (refit(each, model, BATCH).updated for each in (plan, Plan(dict(plan))))
    assert all(torch.equal(one[name], other[name]) for name in plan)


def test_exact_obs_is_refitted_already_and_sparsegpt_nearly():
    model = lenet().double()
    batch = BATCH[0].double(), BATCH[1]
    exact, swept = (prune(model, name, 0.3, batch) for name in ("exact-obs", "sparsegpt"))
    fitted = refit(exact, model, batch)
    for name in exact:
        torch.testing.assert_close(fitted.updated[name], exact.updated[name])
    assert not torch.allclose(refit(swept, model, batch).updated["0"], swept.updated["0"])


def test_outputs_of_a_shuffled_plan_are_nearer_once_it_is_refitted():
    plan = shuffle(prune(lenet(), "magnitude", 0.5), torch.Generator().manual_seed(0))
    wanted = lenet()(BATCH[0]).detach()

    def error(each):
        return float((sparsify_(lenet(), each)(BATCH[0]).detach() - wanted).square().mean())

    assert error(refit(plan, lenet(), BATCH, chunk_size=7)) < 0.7 * error(plan)


def test_dead_inputs_and_empty_layers_are_left_as_they_are():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(20, 4)
    x[:, 2] = 0
    model[0].weight.data *= 100
    with pytest.warns(match="nothing is kept"):
        plan = prune(model, "magnitude", 0.25, allocation="global")
    fitted = refit(plan, model, (x, torch.zeros(20, dtype=torch.int64)))
    assert fitted.updated["1"].shape == (0,)
    kept = torch.where(plan.mask("0"), model[0].weight.detach(), 0.0)
    torch.testing.assert_close(dense(fitted, "0")[:, 2], kept[:, 2])
    assert kept[:, 2].any()


def test_the_model_is_only_read_and_half_precision_stays():
    model = lenet().bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = refit(prune(model, "magnitude", 0.3), model, (BATCH[0].bfloat16(), BATCH[1]))
    assert plan.updated["0"].dtype == torch.bfloat16
    assert model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_plan_of_another_model_is_refused():
    plan = prune(nn.Sequential(nn.Linear(12, 9)), "magnitude", 0.5)
    with pytest.raises(InvalidInput, match=r"weight of shape \(24, 12\) in layer '0'"):
        refit(plan, lenet(), BATCH)
