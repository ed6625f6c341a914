"""One place chooses what computes a product, by device and dtype, and says why."""

import warnings

import pytest
import torch

from pollard.errors import InvalidInput, KernelError, KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels.products import backend, dispatch, explanation, reference, torch_sparse
from pollard.kernels.products.backend import BACKENDS, CUDA, GENERATED, REFERENCE, TORCH_SPARSE, Backend, choose
from pollard.kernels.products.explanation import explain, explain_run

CPU, GPU, OTHER = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def ordinary(monkeypatch):
    monkeypatch.delenv("POLLARD_TARGET", raising=False)
    if backend.current() is None:
        pytest.skip("no kernel is generated for this CPU")


@pytest.mark.parametrize(
    ("device", "dtype", "expected", "why"),
    [
        (CPU, torch.float32, GENERATED, "serves torch.float32 on 'cpu'"),
        (CPU, torch.float64, TORCH_SPARSE, "no kernel computes in torch.float64"),
        (GPU, torch.float32, TORCH_SPARSE, "kernels are generated for CPUs"),
        (GPU, torch.float64, TORCH_SPARSE, "kernels are generated for CPUs"),
        (OTHER, torch.float32, REFERENCE, "torch is not known to have them on 'mps'"),
        (CPU, torch.bfloat16, GENERATED, "serves torch.bfloat16 on 'cpu'"),
        (CPU, torch.float16, GENERATED, "serves torch.float16 on 'cpu'"),
        (GPU, torch.bfloat16, REFERENCE, "torch has no such products in torch.bfloat16"),
    ],
)
def test_the_first_that_serves_is_chosen(ordinary, device, dtype, expected, why):
    chosen, reason = choose(device, dtype)
    assert chosen is expected
    assert why in reason


def test_who_asks_for_the_reference_gets_it(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "reference")
    assert all(choose(device, torch.float32)[0] is REFERENCE for device in (CPU, GPU, OTHER))
    assert "POLLARD_TARGET" in choose(CPU, torch.float32)[1]


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b2x4", "2:4"])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_a_cpu_without_kernels_takes_torchs_products(monkeypatch, ordinary, pattern, batch):
    draw = torch.Generator().manual_seed(0)
    topology = Topology.random((24, 32), 0.5, pattern, draw)
    x, grad = torch.randn(batch, 32, generator=draw), torch.randn(batch, 24, generator=draw)
    values, bias = torch.randn(topology.nnz, generator=draw), torch.randn(24, generator=draw)
    taken = []
    for name in ("forward", "input_grad", "value_grad"):
        own = getattr(torch_sparse, name)
        monkeypatch.setattr(torch_sparse, name, lambda *a, own=own, name=name, **k: taken.append(name) or own(*a, **k))
    monkeypatch.setattr(backend, "current", lambda: None)
    monkeypatch.setattr(dispatch, "current", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelFallback)
        y = dispatch.forward(x, values, topology, bias, activation="relu")
        dx = dispatch.input_grad(grad, values, topology)
        dw = dispatch.value_grad(grad, x, topology)
    assert taken == ["forward", "input_grad", "value_grad"]
    torch.testing.assert_close(y, reference.forward(x, values, topology, bias, activation="relu"))
    torch.testing.assert_close(dx, reference.input_grad(grad, values, topology))
    torch.testing.assert_close(dw, reference.value_grad(grad, x, topology))


def test_a_backend_that_cannot_compile_leaves_it_to_the_reference(monkeypatch, ordinary):
    def fails(*_):
        raise KernelError("no luck", "luck", "Try again.")

    monkeypatch.setattr(dispatch, "choose", lambda *_: (Backend("unlucky", lambda *_: None, fails), ""))
    topology = Topology.random((8, 8), 0.5)
    x, values = torch.ones(2, 8), torch.ones(topology.nnz)
    with pytest.warns(KernelFallback, match="no luck"):
        y = dispatch.forward(x, values, topology)
    torch.testing.assert_close(y, reference.forward(x, values, topology))


def test_a_gradient_is_brought_in_order_once_for_both_of_its_products(monkeypatch):
    turned, seen = [], []

    def ordered(_, grad):
        return lambda each: turned.append(each) or each.t().contiguous().t()

    def call(task, topology, tensors):
        seen.append(tensors[0].stride())
        return REFERENCE.call(task, topology, tensors)

    monkeypatch.setattr(
        dispatch, "choose", lambda *_: (Backend("orderly", lambda *_: None, call, tuned=True, ordered=ordered), "")
    )
    topology = Topology.random((8, 8), 0.5)
    grad, x, values = torch.ones(20, 8), torch.ones(20, 8), torch.ones(topology.nnz)
    dispatch.gradients(grad, x, values, topology)
    turned.clear()
    dx, dvalues = dispatch.gradients(grad, x, values, topology)
    assert (len(turned), seen) == (1, [(1, 20)] * 2)
    torch.testing.assert_close(dx, reference.input_grad(grad, values, topology))
    torch.testing.assert_close(dvalues, reference.value_grad(grad, x, topology))


def test_the_last_refuses_nothing():
    assert BACKENDS[-1] is REFERENCE
    assert all(REFERENCE.refusal(device, torch.float16) is None for device in (CPU, GPU, OTHER))


def test_explain_says_which_and_why(ordinary):
    assert explain("forward", (16, 16, 4), 0.5, "unstructured", dtype="float64").choice == "torch.sparse"
    told = explain("value_grad", (16, 16, 4), 0.5, "b4x2", device="cuda")
    assert (told.choice, told.ir()) == ("torch.sparse", "")
    assert "generated for CPUs" in told.reason
    assert explain("forward", (16, 16, 4), 0.5, "2:4", dtype="bfloat16").spec is not None
    for wrong in ({"dtype": "int8"}, {"device": "toaster"}):
        with pytest.raises(InvalidInput, match=r"int8|toaster"):
            explain("forward", (16, 16, 4), 0.5, "unstructured", **wrong)


@pytest.mark.parametrize(
    ("operation", "density", "expected"),
    [
        ("forward", 0.05, "grain by grain, 128 samples a program"),
        ("value_grad", 0.05, "grain by grain, 64 samples a program"),
        ("input_grad", 0.5, "through dense panels of at most 32 MB of the weight"),
    ],
)
def test_on_cuda_it_is_explained_which_way_a_product_goes(monkeypatch, operation, density, expected):
    monkeypatch.setattr(explanation, "choose", lambda *_: (CUDA, "serves torch.float32 on 'cuda'"))
    found = explain(operation, (64, 64, 256), density, "unstructured", device="cuda")
    assert found.choice == f"Triton kernels, {expected}"
    assert found.spec is None
    topology = Topology.random((64, 64), density, "unstructured")
    done = explain_run(operation, torch.zeros(256, 64), topology, torch.float32)
    assert (done.choice, done.reason) == (found.choice, found.reason)


def test_the_result_of_one_sample_is_of_one_kernel_whatever_is_asked():
    topology, x = Topology.random((32, 64), 0.3, generator=torch.Generator().manual_seed(0)), torch.ones(1, 64)
    for operation in ("forward", "input_grad"):
        operand = x if operation == "forward" else torch.ones(1, 32)
        run = [explain_run(operation, operand, topology, torch.float32, rows=rows) for rows in (False, True)]
        assert run[0] == run[1]
        assert not run[1].spec.batch_first
