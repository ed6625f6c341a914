"""bfloat16, float16 and float64 against the twin in double precision, on shapes, layouts and patterns of all kinds."""

import pytest
import torch

from pollard.formats.topology import Topology
from pollard.kernels.products import derived, dispatch, reference, torch_sparse
from pollard.kernels.products.backend import HALVES

LAYOUTS = {
    "row-major": lambda t: t,
    "column-major": lambda t: t.t().contiguous().t(),
    "strided": lambda t: t.repeat(1, 2)[:, : t.shape[1]],
    "broadcast": lambda t: t[:1].expand(len(t), -1),
}


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(pattern, shape, batch, layout, density=0.3):
    topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(0))
    x, grad = (LAYOUTS[layout](drawn(batch, width, seed=width)) for width in (shape[1], shape[0]))
    return topology, x, grad, drawn(topology.nnz, seed=1), drawn(shape[0], seed=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v8"])
def test_double_precision_equals_the_twin(pattern, batch, layout):
    for shape in ((48, 100), (16, 7), (32, 1), (8, 900)):
        topology, x, grad, values, bias = problem(pattern, shape, batch, layout)
        for offset, name in ((None, None), (bias, None), (bias, "relu")):
            y = torch_sparse.forward(x, values, topology, offset, activation=name)
            torch.testing.assert_close(y, reference.forward(x, values, topology, offset, activation=name))
            assert batch == 1 or y.stride() == (1, batch)
        dx = torch_sparse.input_grad(grad, values, topology)
        torch.testing.assert_close(dx, reference.input_grad(grad, values, topology))
        assert batch == 1 or dx.stride() == (1, batch)
        torch.testing.assert_close(torch_sparse.value_grad(grad, x, topology), reference.value_grad(grad, x, topology))


@pytest.mark.parametrize("batch", [1, 2, 33, 70])
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_double_precision_in_many_pieces_with_rows_that_keep_nothing(monkeypatch, density, pattern, batch):
    monkeypatch.setattr(derived, "RUN", 16)
    monkeypatch.setattr(torch_sparse, "BLOCK", 1000)
    monkeypatch.setattr(torch_sparse, "BLOCKS", 100)
    made = torch.Generator().manual_seed(3)
    mask = Topology.random((96, 120), density, pattern, made).mask()
    mask[:8] = mask[40:48] = mask[88:] = False
    topology = Topology.from_mask(mask, pattern)
    x, grad, values = drawn(batch, 120, seed=1), drawn(batch, 96, seed=2), drawn(topology.nnz, seed=3)
    assert len(derived.runs(topology)) > 1
    dense = torch.zeros(96, 120, dtype=torch.float64)
    dense.view(-1)[topology.weight_positions()] = values
    torch.testing.assert_close(torch_sparse.forward(x, values, topology), x @ dense.t())
    torch.testing.assert_close(torch_sparse.input_grad(grad, values, topology), grad @ dense)
    right = (grad.t() @ x).view(-1)[topology.weight_positions()]
    torch.testing.assert_close(torch_sparse.value_grad(grad, x, topology), right)


@pytest.mark.parametrize(
    ("batch", "density", "ways"), [(2, 0.3, ""), (3, 0.3, "blocks"), (65, 0.3, "sampled"), (3, 0.02, "sampled")]
)
def test_gradients_of_values_go_the_way_that_costs_least(monkeypatch, batch, density, ways):
    taken = []
    blocks, sampled = torch_sparse._by_blocks, torch.sparse.sampled_addmm
    monkeypatch.setattr(torch_sparse, "_by_blocks", lambda *given: taken.append("blocks") or blocks(*given))
    monkeypatch.setattr(
        torch.sparse, "sampled_addmm", lambda *given, **more: taken.append("sampled") or sampled(*given, **more)
    )
    topology = Topology.random((40, 50), density, "unstructured", torch.Generator().manual_seed(0))
    x, grad = drawn(batch, 50, seed=1), drawn(batch, 40, seed=2)
    torch.testing.assert_close(torch_sparse.value_grad(grad, x, topology), reference.value_grad(grad, x, topology))
    assert taken == ([ways] if ways else [])


def test_double_precision_equals_the_dense_product():
    topology, x, grad, values, bias = problem("unstructured", (40, 60), 9, "row-major")
    dense = torch.zeros(40, 60, dtype=torch.float64)
    dense[topology.mask()] = values
    torch.testing.assert_close(torch_sparse.forward(x, values, topology, bias), x @ dense.t() + bias)
    torch.testing.assert_close(torch_sparse.input_grad(grad, values, topology), grad @ dense)
    torch.testing.assert_close(torch_sparse.value_grad(grad, x, topology), (grad.t() @ x)[topology.mask()])


def test_nothing_kept_no_batch_no_rows_no_columns():
    for topology, batch in (
        (Topology.from_mask(torch.zeros(4, 3, dtype=torch.bool)), 5),
        (Topology.full((4, 3)), 0),
        (Topology.full((0, 3)), 5),
        (Topology.full((4, 0)), 5),
    ):
        x, grad = drawn(batch, topology.shape[1], seed=1), drawn(batch, topology.shape[0], seed=2)
        values = drawn(topology.nnz, seed=3)
        assert torch.equal(torch_sparse.forward(x, values, topology), reference.forward(x, values, topology))
        assert torch.equal(
            torch_sparse.input_grad(grad, values, topology), reference.input_grad(grad, values, topology)
        )
        assert torch.equal(torch_sparse.value_grad(grad, x, topology), reference.value_grad(grad, x, topology))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_half_precision_is_rounded_once(dtype, pattern):
    topology, *doubles = problem(pattern, (48, 100), 33, "row-major")
    x, grad, values, bias = (each.to(dtype) for each in doubles)
    pairs = [
        (dispatch.forward, reference.forward, (x, values, topology, bias)),
        (dispatch.input_grad, reference.input_grad, (grad, values, topology)),
        (dispatch.value_grad, reference.value_grad, (grad, x, topology)),
    ]
    for fast, twin, operands in pairs:
        ours = fast(*operands)
        exact = twin(*(each.double() if isinstance(each, torch.Tensor) else each for each in operands))
        assert ours.dtype == dtype
        # One rounding to half precision, and those of float32 sums, far smaller, which may tip it to the next number.
        torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
