"""Products on CUDA equal their twins: by grains and by panels, every pattern, dtype, layout and activation, empty rows, few samples.

Where there is no GPU, Triton's interpreter runs the same kernels on the CPU: run by `test_triton` in a process of its own.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.activations import ACTIVATIONS
from pollard.formats.topology import Topology
from pollard.kernels.products import reference
from pollard.kernels.products.cuda import panels
from pollard.kernels.products.cuda import products as cuda
from pollard.kernels.products.cuda.launch import interpreted
from pollard.kernels.products.task import Task

DEVICE = torch.device("cpu" if interpreted() else "cuda")
# Half a unit in the last place, and in Triton's interpreter, which cuts bfloat16 off, a whole one.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7 if interpreted() else 2**-8}
PATTERNS = {
    "unstructured": (24, 40),
    "v8": (32, 20),
    "b16x16": (32, 48),
    "b4x2": (12, 20),
    "k3x3": (6, 27),
    "2:4": (8, 32),
}
KINDS = [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.bfloat16, torch.float32)]  # fmt: skip
BATCHES = (1, 5, 70)


@pytest.fixture(params=["grains", "panels"])
def way(request, monkeypatch):
    monkeypatch.setattr(cuda, "by_panels", lambda *_: request.param == "panels")
    monkeypatch.setattr(panels, "BYTES", 1500)  # several
    if interpreted():
        monkeypatch.setattr(torch, "mm", lambda *given, own=torch.mm, **options: _mm(own, *given, **options))
    # Torch may add up half precision in half precision, unless it is told not to.
    flags, names = (
        torch.backends.cuda.matmul,
        [f"allow_{name}_reduced_precision_reduction" for name in ("bf16", "fp16")],
    )
    before = [getattr(flags, name) for name in names]
    for name in names:
        setattr(flags, name, False)
    yield request.param
    for name, value in zip(names, before, strict=True):
        setattr(flags, name, value)


def _mm(own, left, right, *, out_dtype=None, **options):
    """What torch has on CUDA alone."""
    return own(left, right, **options) if out_dtype is None else own(left.to(out_dtype), right.to(out_dtype), **options)


def operands(topology, batch, dtype, values, *, features_first=False, seed=0):
    """x, values, bias and gradient: numbers that all dtypes have, whose products are then all that is rounded."""
    draw = torch.Generator().manual_seed(seed)
    out, width = topology.shape

    def numbers(*size):
        return torch.randn(*size, generator=draw).bfloat16()

    x, grad = numbers(batch, width).to(DEVICE, dtype), numbers(batch, out).to(DEVICE, dtype)
    if features_first:
        x, grad = x.t().contiguous().t(), grad.t().contiguous().t()
    return x, numbers(topology.nnz).to(DEVICE, values), numbers(out).to(DEVICE, values), grad


def product(task, topology, *tensors):
    return cuda.call(task, topology, tensors)(*tensors)


def assert_within(found, expected, dtype, terms, more=0):
    """Sums in float32, rounded once: `terms` are sums of absolute values; more: what else may be lost."""
    assert found.dtype == dtype
    error = (found.double() - expected).abs()
    allowed = ROUNDING[dtype] * expected.abs() + 4e-6 * terms + 1e-7 + more
    assert (error <= allowed).all(), (error / allowed).max()


def assert_parity(way, topology, batch, dtype, values, *, features_first=False):
    x, w, bias, grad = operands(topology, batch, dtype, values, features_first=features_first)
    vectors, wide = topology.vectors, [each.double() for each in (x, w, bias, grad)]
    wide_x, wide_w, wide_bias, wide_grad = wide
    terms_x, terms_w, terms_bias, terms_grad = (each.abs() for each in wide)
    for rows in (False, True):
        y = product(Task("forward", values, rows=rows), topology, x, w)
        expected = reference.forward(wide_x, wide_w, vectors)
        assert_within(y, expected, dtype, reference.forward(terms_x, terms_w, vectors))
        y = product(Task("forward", values, rows=rows), topology, x, w, bias)
        twice = expected.abs() * ROUNDING[dtype] if dtype != torch.float32 and way == "panels" else 0
        expected = reference.forward(wide_x, wide_w, vectors, wide_bias)
        assert_within(y, expected, dtype, reference.forward(terms_x, terms_w, vectors, terms_bias), twice)
        dx = product(Task("input_grad", values, rows=rows), topology, grad, w)
        expected = reference.input_grad(wide_grad, wide_w, vectors)
        assert_within(dx, expected, dtype, reference.input_grad(terms_grad, terms_w, vectors))
        assert y.stride(0 if not rows else 1) == dx.stride(0 if not rows else 1) == 1
    dw = product(Task("value_grad", values), topology, grad, x)
    expected = reference.value_grad(wide_grad, wide_x, vectors)
    assert_within(dw, expected, values, reference.value_grad(terms_grad, terms_x, vectors))


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("features_first", [False, True])
def test_products_equal_their_twins(way, pattern, kind, batch, features_first):
    topology = Topology.random(
        PATTERNS[pattern], 0.5 if ":" in pattern else 0.3, pattern, torch.Generator().manual_seed(1)
    )
    assert_parity(way, topology, batch, *kind, features_first=features_first)


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in exp:RuntimeWarning"
)  # by the interpreter; it goes to the right limit
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch", BATCHES)
def test_activations(way, activation, batch):
    topology = Topology.random((32, 20), 0.4, "v4", torch.Generator().manual_seed(1))
    x, w, bias, _ = operands(topology, batch, torch.float32, torch.float32)
    x[0] *= 30  # where exponentials overflow
    y = product(Task("forward", torch.float32, activation), topology, x, w, bias)
    expected = reference.forward(x.double(), w.double(), topology, bias.double(), activation=activation)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_relu_keeps_what_is_no_number(way):
    topology = Topology.full((8, 4), "v4")
    x = torch.full((20, 4), float("nan"), device=DEVICE)
    y = product(Task("forward", torch.float32, "relu"), topology, x, torch.ones(topology.nnz, device=DEVICE))
    assert y.isnan().all()


def test_what_no_weight_reads_is_not_read_by_grains(monkeypatch):
    monkeypatch.setattr(cuda, "by_panels", lambda *_: False)
    mask = torch.zeros(8, 6, dtype=torch.bool)
    mask[:, 3] = True
    topology = Topology.from_mask(mask)
    x = torch.full((20, 6), float("inf"), device=DEVICE)
    x[:, 3] = 1.0
    w = torch.ones(topology.nnz, device=DEVICE)
    assert torch.equal(product(Task("forward", torch.float32), topology, x, w), torch.ones(20, 8, device=DEVICE))


@pytest.mark.parametrize("batch", BATCHES)
def test_empty_rows_and_columns(way, batch):
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[3, 4] = mask[17, 29] = True
    assert_parity(way, Topology.from_mask(mask), batch, torch.float32, torch.float32)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 40),
    batch=st.integers(1, 40),
    keep=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mask_any_batch(way, rows, columns, batch, keep, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < keep
    mask[0, 0] = True
    assert_parity(way, Topology.from_mask(mask), batch, torch.float32, torch.float32)


def test_the_same_bits_again(way):
    topology = Topology.random((32, 64), 0.3, "v4", torch.Generator().manual_seed(1))
    x, w, bias, grad = operands(topology, 70, torch.float32, torch.float32)
    for task, given_ in (("forward", (x, w, bias)), ("input_grad", (grad, w)), ("value_grad", (grad, x))):
        run = cuda.call(Task(task, torch.float32), topology, given_)
        assert torch.equal(run(*given_), run(*given_))


def test_operands_that_begin_anywhere(way):
    topology = Topology.random((32, 64), 0.3, "v4", torch.Generator().manual_seed(1))
    x, w, bias, _ = operands(topology, 70, torch.float32, torch.float32)
    run = cuda.call(Task("forward", torch.float32), topology, (x, w, bias))
    expected = run(x, w, bias)
    for more in (1, 4):
        shifted = [torch.cat([each.new_zeros(more), each.flatten()])[more:].view_as(each) for each in (x, w, bias)]
        torch.testing.assert_close(run(*shifted), expected)
    assert torch.equal(run(x, w, bias), expected)


def test_one_turn_serves_both_gradients(way):
    topology = Topology.random((32, 64), 0.3, "v4", torch.Generator().manual_seed(1))
    grad = operands(topology, 70, torch.float32, torch.float32)[-1]
    turn = cuda.ordered(topology, grad)
    if way == "panels":
        assert turn is None
        return
    assert torch.equal(turn(grad), grad)
    assert turn(grad).stride() == (1, 70)
    assert cuda.ordered(topology, turn(grad)) is None


def test_wide_columns_are_int32():
    topology = Topology.from_positions((1, 70000), "unstructured", torch.tensor([5, 69999]))
    x, w, _, grad = operands(topology, 3, torch.float32, torch.float32)
    for task, given_ in (("forward", (x, w)), ("value_grad", (grad, x))):
        found = product(Task(task, torch.float32), topology, *given_)
        expected = getattr(reference, task)(*(each.double() for each in given_), topology)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
