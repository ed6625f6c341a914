"""What products are held against: their slow twins in double precision, and themselves by another way."""

from dataclasses import replace

import torch

from pollard.kernels.products import dispatch, reference, tuning
from pollard.kernels.products.tuning import Decision

HALVES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def operand(batch, features, layout, seed, dtype=torch.float32):
    made = torch.Generator().manual_seed(seed)
    if layout == "row-major":
        return torch.randn(batch, features, generator=made).to(dtype)
    if layout == "column-major":
        return torch.randn(features, batch, generator=made).to(dtype).t()
    if layout == "strided":
        return torch.randn(batch, 2 * features + 1, generator=made).to(dtype)[:, 1::2]
    return torch.randn(1, features, generator=made).to(dtype).expand(batch, features)


def assert_close(fast, exactly, operands, terms):
    # Against the twin in double precision; a sum of n rounded products is off by at most n units of rounding of the
    # sum of their magnitudes, here doubled. Half precision rounds that sum once more.
    exact = exactly(*(each if each is None else each.double() for each in operands))
    size = exactly(*(each if each is None else each.double().abs() for each in operands))
    assert fast.shape == exact.shape
    allowed = torch.finfo(torch.float32).eps * (terms + 2) * size
    if fast.dtype != torch.float32:
        allowed += torch.finfo(fast.dtype).eps / 2 * (exact.abs() + allowed) + torch.finfo(fast.dtype).smallest_normal
    assert ((fast.double() - exact).abs() <= allowed + 1e-30).all()


def assert_parity(topology, batch, layout, dtype=torch.float32, values_dtype=torch.float32):
    out, width = topology.shape
    values = torch.randn(topology.nnz, generator=torch.Generator().manual_seed(1)).to(values_dtype)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(2)).to(values_dtype)
    x, grad = operand(batch, width, layout, 3, dtype), operand(batch, out, layout, 4, dtype)
    # An activation without a bias: in tests/kernels/products/test_activations.py.
    for offset, relu in ((None, None), (bias, None), (bias, "relu")):
        fast = dispatch.forward(x, values, topology, offset, activation=relu)
        plain = dispatch.forward(x, values, topology, offset)
        assert torch.equal(fast, plain.relu() if relu else plain)
        assert_close(plain, lambda x, v, b: reference.forward(x, v, topology, b), (x, values, offset), width)
        assert batch <= 1 or fast.stride() == (1, batch)
    if topology.grains and batch:
        assert_same_rows(fast, dispatch.forward(x, values, topology, bias, activation="relu", rows=True))
    fast = dispatch.input_grad(grad, values, topology)
    if topology.grains and batch:
        assert_same_rows(fast, dispatch.input_grad(grad, values, topology, rows=True))
    assert_close(fast, lambda g, v: reference.input_grad(g, v, topology), (grad, values), out)
    fast = dispatch.value_grad(grad, x, topology, values_dtype)
    assert fast.dtype == values_dtype
    assert_close(fast, lambda g, x: reference.value_grad(g, x, topology), (grad, x), batch)


def assert_same_rows(features_first, rows):
    assert torch.equal(rows.isnan(), features_first.isnan())
    assert torch.equal(rows.nan_to_num(), features_first.nan_to_num())
    assert rows.is_contiguous()


def by_threads_and_layouts(x, values, topology, bias):
    """The same product on one thread and two, of x however it lies, in rows and not."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found += [
            dispatch.forward(given, values, topology, bias, activation="gelu", rows=rows)
            for given in (x, x.t().contiguous().t(), torch.cat([x, x], 1)[:, : x.shape[1]])
            for rows in (False, True)
        ]
    return found


def products(topology, batch, dtype=torch.float32):
    values = torch.randn(topology.nnz, generator=torch.Generator().manual_seed(1)).to(dtype)
    x, grad = (operand(batch, side, "row-major", 3 + side, dtype) for side in reversed(topology.shape))
    return (
        dispatch.forward(x, values, topology, activation="relu"),
        dispatch.input_grad(grad, values, topology),
        dispatch.value_grad(grad, x, topology),
    )


def forced(monkeypatch, choice):
    monkeypatch.setattr(tuning, "known", lambda key, candidates: Decision(choice, "forced"))


def forced_panels(monkeypatch, choice):
    # Dot products, which have no panels, are taken 4 at a time.
    dots = replace(choice, vectors=4)
    monkeypatch.setattr(tuning, "known", lambda key, _: Decision(dots if key.startswith("sddmm") else choice, "forced"))
