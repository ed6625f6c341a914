from __future__ import annotations

import math
import tracemalloc

import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from networks import BATCH, generator, lenet
from pollard.errors import InvalidInput, PatternError
from pollard.nn import SparseLinear, sparsify_
from pollard.pruning import exact_orthogonal, prune, sparse_orthogonal
from pollard.pruning.orthogonal import BLOCK


def dense(matrix):
    return matrix.to_dense().double()


def distance(weight):
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return float((wide @ wide.T - torch.eye(len(wide), dtype=wide.dtype)).abs().max())


@given(st.integers(1, 24), st.integers(1, 24), st.floats(0, 1), st.integers(0, 1000))
def test_it_is_orthogonal_and_keeps_exactly_as_many(out, inputs, density, seed):
    count = round(density * out * inputs)
    matrix = sparse_orthogonal((out, inputs), count, generator=torch.Generator().manual_seed(seed))
    assert matrix.topology.nnz == count
    assert str(matrix.topology.pattern) == "unstructured"
    if count >= min(out, inputs):
        assert distance(dense(matrix)) < 1e-5
    else:
        # A part of the identity.
        assert dense(matrix).diagonal().sum() == dense(matrix).sum() == count


def by_products(shape, count, seed):
    """As published: the identity times one dense rotation after the other, while what is not zero has room."""
    draw = torch.Generator().manual_seed(seed)
    short, long = min(shape), max(shape)
    found = torch.eye(short, long, dtype=torch.float64)
    while True:
        first = torch.randint(long, (BLOCK,), generator=draw)
        second = (first + torch.randint(1, long, (BLOCK,), generator=draw)) % long
        angles = torch.rand(BLOCK, generator=draw, dtype=torch.float64) * 2 * math.pi
        for i, j, angle in zip(first, second, angles, strict=True):
            rotation = torch.eye(long, dtype=torch.float64)
            rotation[i, i] = rotation[j, j] = angle.cos()
            rotation[j, i], rotation[i, j] = angle.sin(), -angle.sin()
            after = found @ rotation
            if int((after.abs() > 0).sum()) > count:
                return found if shape[0] <= shape[1] else found.T
            found = after


@pytest.mark.parametrize("shape", [(8, 8), (6, 11), (11, 6)])
@pytest.mark.parametrize("density", [0.2, 0.4, 0.7])
def test_it_is_a_product_of_rotations_in_the_planes_of_two_columns(shape, density):
    count = round(density * shape[0] * shape[1])
    expected = by_products(shape, count, seed=3)
    matrix = sparse_orthogonal(shape, count, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(dense(matrix), expected, rtol=0, atol=1e-6)
    # What is kept besides is zero to begin with.
    assert matrix.topology.nnz - int((matrix.values != 0).sum()) == count - int((expected != 0).sum())


def test_a_gain_scales_it():
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    one, two = (
        sparse_orthogonal((6, 9), 20, gain=gain, generator=each) for gain, each in zip((1, 2), draws, strict=True)
    )
    assert two.topology.same_as(one.topology)
    torch.testing.assert_close(two.values, 2 * one.values)


def test_torch_s_own_numbers_are_drawn_where_no_generator_is_given():
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(sparse_orthogonal((7, 7), 20))
    assert torch.equal(found[0].values, found[1].values)
    assert found[0].topology.same_as(found[1].topology)
    assert not sparse_orthogonal((7, 7), 20).topology.same_as(found[0].topology)


@pytest.mark.parametrize("count", [-1, 13])
def test_a_count_that_there_is_no_room_for_is_refused(count):
    with pytest.raises(InvalidInput, match=f"count of {count}"):
        sparse_orthogonal((3, 4), count)


def test_a_weight_is_made_in_the_memory_of_what_it_keeps():
    size, count = 20_000, 40_000  # 1.6 GB in float32, if it were dense
    tracemalloc.start()
    matrix = sparse_orthogonal((size, size), count, generator=generator())
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
    topology = matrix.topology
    held = scipy.sparse.csr_array(
        (matrix.values.double().numpy(), topology.columns.numpy(), topology.row_pointers.numpy()), shape=(size, size)
    )
    assert topology.nnz == count
    assert abs(held @ held.T - scipy.sparse.eye_array(size)).max() < 1e-5


def test_a_plan_keeps_its_counts_and_its_layers_become_orthogonal():
    model = lenet().double()
    plan = prune(model, "random", 0.3, BATCH, allocation="erk", generator=generator())
    made = exact_orthogonal(plan, generator=generator())
    assert [made[name].nnz for name in made] == [plan[name].nnz for name in plan]
    assert (made.criterion, made.allocation, made.asked, made.coverage) == ("random", "erk", 0.3, plan.coverage)
    sparsify_(model, made)
    for name in made:
        assert distance(model.get_submodule(name).to_dense().weight.detach()) < 1e-5


def test_signals_and_gradients_keep_their_length_through_any_number_of_layers():
    layers = []
    for _ in range(60):
        matrix = sparse_orthogonal((32, 32), 150, generator=generator())
        layers.append(
            SparseLinear(32, 32, matrix.topology, bias=False, initialiser=lambda _, __, held=matrix: held.values)
        )
    x = torch.randn(10, 32, generator=generator(), requires_grad=True)
    y = nn.Sequential(*layers)(x)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=0)
    y.square().sum().div(2).backward()
    torch.testing.assert_close(x.grad, x.detach(), rtol=1e-3, atol=1e-4)


def test_grains_of_several_weights_are_refused():
    plan = prune(lenet(), "random", 0.3, pattern="v4", generator=generator())
    with pytest.raises(PatternError, match="pattern v4, to be orthogonal"):
        exact_orthogonal(plan)
