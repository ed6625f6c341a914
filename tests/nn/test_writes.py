"""What ordinary code does to the memory of a layer's tensors: never a crash, never another layer's numbers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pollard
from pollard.errors import InvalidInput, TopologyError
from pollard.formats.topology import Topology
from pollard.nn import SparseLinear


def layer(seed=0, density=0.3):
    return SparseLinear.random(40, 30, density, generator=torch.Generator().manual_seed(seed))


X = torch.randn(8, 40, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "write",
    [
        lambda array: array.fill_(10**9),
        lambda array: array.data.fill_(10**9),
        lambda array: array.numpy().fill(10**9),
        lambda array: array.set_(torch.full((3,), 10**9, dtype=torch.int32)),
        lambda array: array.untyped_storage().resize_(0),
        lambda array: array.share_memory_(),
        lambda array: setattr(array, "data", array.clone()[:1]),
    ],
    ids=["fill", "data", "numpy", "set", "resize", "share", "swap"],
)
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("of", ["layer", "topology", "state", "plan"])
def test_nobody_can_write_to_the_indices(write, of, inference):
    with torch.inference_mode(inference):
        mine = layer()
        plan = pollard.Plan({"0": mine.topology})
        before = mine(X).clone()
        holders = {"layer": mine, "topology": mine.topology, "plan": plan["0"]}
        for name in ("row_pointers", "columns"):
            write(mine.state_dict()[name] if of == "state" else getattr(holders[of], name))
        assert torch.equal(mine(X), before)
        assert mine.topology.same_as(Topology((30, 40), "unstructured", mine.row_pointers, mine.columns))


def test_a_topology_is_frozen():
    kept = Topology.full((2, 2))
    with pytest.raises(AttributeError, match="frozen"):
        kept.shape = (3, 3)
    with pytest.raises(AttributeError, match="frozen"):
        kept.columns = torch.zeros(4)


@pytest.mark.parametrize(
    "move",
    [
        lambda mine: mine.share_memory(),
        pickle.dumps,
        lambda mine: mine.values.data.fill_(2.0),
        lambda mine: setattr(mine.values, "data", torch.full_like(mine.values, 2.0)),
        lambda mine: mine.values.detach().numpy().fill(2.0),
        lambda mine: nn.utils.vector_to_parameters(torch.ones(390), mine.parameters()),
        lambda mine: nn.init.normal_(mine.values),
        lambda mine: mine.bias.data.set_(torch.ones(60)[::2]),
        lambda mine: setattr(mine.bias, "data", torch.ones(60)[::2]),
        lambda mine: mine.values.data.copy_(torch.randn(360)),
    ],
    ids=["share", "pickle", "data", "swap", "numpy", "vector", "init", "strided", "swapped bias", "copy"],
)
def test_values_that_move_or_change_are_read_where_they_are(move):
    mine = layer()
    mine(X).sum().backward()
    move(mine)
    junk = [torch.full((360,), 7.0) for _ in range(50)]  # whoever gets the memory that was left
    torch.testing.assert_close(mine(X), mine.to_dense()(X))
    assert len(junk) == 50


@pytest.mark.parametrize("name", ["values", "bias"])
@pytest.mark.parametrize("size", [0, 40])
def test_storage_that_is_gone_is_told(name, size):
    mine = layer()
    mine(X)
    getattr(mine, name).untyped_storage().resize_(size)
    with pytest.raises(InvalidInput, match="bytes of memory"):
        mine(X)


def test_storage_of_an_input_that_is_gone_is_told():
    x = X.clone()
    x.untyped_storage().resize_(100)
    with pytest.raises(InvalidInput, match="bytes of memory"):
        layer()(x)


def test_a_part_of_an_empty_input_is_empty():
    """As the states of an LSTM of several layers are, for a batch of no sequences."""
    mine = layer()
    assert mine(X.new_zeros(3, 0, X.shape[1])[2]).shape == (0, mine.out_features)
    convolution = nn.Sequential(nn.Conv2d(4, 8, 3))
    pollard.sparsify_(convolution, pollard.prune(convolution, "magnitude", 0.5))
    assert convolution(torch.zeros(3, 0, 4, 5, 5)[2]).shape == (0, 8, 3, 3)
    lstm = nn.Sequential(nn.LSTM(4, 8, 2))
    pollard.sparsify_(lstm, pollard.prune(lstm, "magnitude", 0.5))
    assert lstm(torch.zeros(5, 0, 4))[0].shape == (5, 0, 8)


def test_another_model_s_state_is_refused_instead_of_computed_with():
    mine, other = layer(0), layer(1)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    with pytest.raises(TopologyError, match="averaging"):
        torch.func.functional_call(mine, state, (X,))
    torch.testing.assert_close(mine(X), mine.to_dense()(X))
    same = copy.deepcopy(mine)
    nn.init.ones_(same.values)
    state = {**dict(same.named_parameters()), **dict(same.named_buffers())}
    torch.testing.assert_close(torch.func.functional_call(mine, state, (X,)), same(X))


@pytest.mark.parametrize("options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"use_buffers": True}])
def test_an_average_over_one_topology_is_right_and_over_a_moving_one_is_refused(options):
    mine = nn.Sequential(layer())
    average, bystander, plan = AveragedModel(mine, **options), copy.deepcopy(mine), mine[0].topology
    columns, before = plan.columns, bystander(X).clone()
    total = torch.zeros(30, 40)
    for step in range(4):
        nn.init.constant_(mine[0].values, float(step))
        average.update_parameters(mine)
        dense = mine[0].to_dense().weight.detach()
        share = 0.1 if "multi_avg_fn" in options else 1 / (step + 1)
        total = dense if step == 0 else total + share * (dense - total)
    torch.testing.assert_close(average.module[0].to_dense().weight.detach(), total)
    mine[0].keep_(layer(1).topology, torch.ones(360))
    average.update_parameters(mine)
    for use in (lambda: average(X), average.module[0].to_dense, lambda: average.module[0].topology):
        with pytest.raises(TopologyError, match=r"averaging\.md"):
            use()
    assert torch.equal(bystander(X), before)
    assert torch.equal(plan.columns, columns)
    average.module.load_state_dict(mine.state_dict())
    torch.testing.assert_close(average(X), mine(X))


@pytest.mark.parametrize("change", [torch.Tensor.half, torch.Tensor.double, torch.Tensor.bfloat16])
def test_a_signature_survives_conversions(change):
    mine = layer()
    for dtype in (torch.half, torch.bfloat16, torch.double, torch.float):
        mine.to(dtype)
        assert mine.topology.nnz == 360
    assert change(mine.topology_signature).tolist() == mine.topology.signature.tolist()


def test_signatures_tell_topologies_apart():
    torch.manual_seed(0)
    kept = Topology.random((64, 64), 0.1)
    seen = {tuple(kept.signature.tolist())}
    for grain in range(0, kept.grains, 7):
        stays = torch.ones(kept.grains, dtype=torch.bool)
        stays[grain] = False
        free = next(p for p in range(64 * 64) if p not in set(kept.positions().tolist()))
        moved = kept.rewired(stays, torch.tensor([free]))[0]
        assert moved.nnz == kept.nnz
        seen.add(tuple(moved.signature.tolist()))
    assert len(seen) == 1 + len(range(0, kept.grains, 7))
    assert kept.signature.tolist() == Topology.from_mask(kept.mask()).signature.tolist()
    assert Topology.full((4, 2), "v2").signature.tolist() != Topology.full((4, 2), "v4").signature.tolist()


def test_reset_parameters_draws_anew_and_keeps_the_topology():
    mine = layer()
    kept, before = mine.topology, mine.values.detach().clone()
    mine.reset_parameters()
    assert mine.topology is kept
    assert not torch.equal(mine.values, before)
    bound = kept.fan_in().clamp(min=1).rsqrt().repeat_interleave(kept.fan_in())
    assert bool((mine.values.abs() <= bound).all())


@pytest.mark.parametrize("name", ["row_pointers", "columns", "pattern", "topology"])
def test_where_values_stand_is_not_set_by_name(name):
    layer = SparseLinear.random(6, 4, 0.5)
    with pytest.raises(InvalidInput, match=rf"an assignment to {name}.*keep_"):
        setattr(layer, name, getattr(layer, name))
    with pytest.raises(InvalidInput, match=r"dict\(model\.named_parameters\(\)\)"):
        functional_call(layer, layer.state_dict(), torch.ones(2, 6))
    functional_call(layer, {**dict(layer.named_parameters()), **dict(layer.named_buffers())}, torch.ones(2, 6))
