"""Products of bfloat16 in the tiles of AMX: by the instructions where this CPU has them, else in the words of their manual."""

import ctypes
import errno
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tiled
from parity import assert_parity, assert_same_rows, operand
from pollard.formats.topology import Topology
from pollard.kernels.code import jit, permission, target
from pollard.kernels.code.target import TARGETS
from pollard.kernels.products import dispatch, explanation, generated, product, tuning
from pollard.kernels.products.operand import Operand
from pollard.kernels.products.tuning import Decision

BFLOAT16 = torch.bfloat16
PATTERNS = ("v16", "b16x2", "b16x3", "b16x16", "b16x64")
pytestmark = pytest.mark.skipif("avx512" not in target.host_isas(), reason="no vectors of 512 bits")
only_with_tiles = pytest.mark.skipif(bool(target.without_tiles()), reason=target.without_tiles() or "there are tiles")


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "avx512")
    monkeypatch.setenv("POLLARD_TUNING", "default")
    monkeypatch.setattr(product, "SHARE", 1)
    if target.without_tiles():
        tiled.pretend(monkeypatch)


def fresh(pattern, shape=(48, 192), density=0.5):
    # What is prepared for one way is not for the other.
    return Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))


def products(topology, batch, layout="row-major", dtype=BFLOAT16):
    values, bias = (
        torch.randn(size, generator=torch.Generator().manual_seed(1)).to(BFLOAT16)
        for size in (topology.nnz, topology.shape[0])
    )
    x, grad = (operand(batch, side, layout, 3 + side, BFLOAT16) for side in reversed(topology.shape))
    forward, by_rows = (
        dispatch.forward(x, values, topology, bias, activation="gelu", rows=rows) for rows in (False, True)
    )
    input_grad = dispatch.input_grad(grad, values, topology)
    assert_same_rows(forward, by_rows)
    assert_same_rows(input_grad, dispatch.input_grad(grad, values, topology, rows=True))
    return forward, input_grad, dispatch.value_grad(grad, x, topology, dtype)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("batch", [2, 31, 64, 97, 130, 300])
@pytest.mark.parametrize("layout", ["row-major", "column-major", "strided"])
@pytest.mark.parametrize("shape, density", [((48, 192), 0.5), ((16, 192), 0.35), ((96, 576), 0.04), ((16, 192), 1.0)])
def test_tiles_agree_with_the_twin(pattern, batch, layout, shape, density):
    assert_parity(fresh(pattern, shape, density), batch, layout, BFLOAT16, BFLOAT16)


def test_tiles_are_what_runs(monkeypatch):
    for pattern, by_columns in (("b16x16", {"amx_gather"}), ("b16x2", {"amx_scatter", "cut"})):
        monkeypatch.setattr(jit, "_loaded", {})
        products(fresh(pattern, (48, 1920)), 64)
        found = {spec.operation for spec in jit._loaded} - {"turn", "count"}
        assert found == {"amx_gather", "amx_sddmm", "pack"} | by_columns


@pytest.mark.parametrize("pattern", ["v16", "b16x2", "b16x16"])
def test_panels_tiles_of_columns_and_threads_cannot_be_seen(pattern, monkeypatch):
    def run():
        return products(fresh(pattern, (64, 960), 0.2), 300, "column-major")

    usual = run()
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same(run(), usual)
    for vectors, width, packed in ((1, 0, True), (2, 7, True), (1, 33, False)):

        def known(key, candidates, vectors=vectors, width=width, packed=packed):
            first = candidates()[0]
            columns = width if key.startswith("amx_scatter") and not first.transposed else 0
            return Decision(replace(first, vectors=vectors, width=columns, packed=packed), "forced")

        monkeypatch.setattr(tuning, "known", known)
        assert_same(run(), usual)


def chains(left, right):
    # One after another, those of even places and those of odd ones: products of bfloat16 are exact in float32.
    even, odd = (torch.zeros(left.shape[0], right.shape[1]) for _ in range(2))
    for first in range(0, left.shape[1], 2):
        even = even + left[:, first, None] * right[first]
        odd = odd + left[:, first + 1, None] * right[first + 1]
    return even + odd


@pytest.mark.parametrize("batch", [32, 64, 256, 320])
def test_the_order_of_additions_is_the_manuals(batch):
    topology = Topology.full((16, 32), "v16")
    x, grad = operand(batch, 32, "row-major", 1, BFLOAT16), operand(batch, 16, "row-major", 2, BFLOAT16)
    values = torch.randn(512, generator=torch.Generator().manual_seed(3)).to(BFLOAT16)
    weight = values.float().view(32, 16)
    dw = torch.zeros(32, 16)
    for step in range(0, batch, 256):
        sums = torch.zeros(32, 16)
        for start in range(step, min(step + 256, batch), 32):
            sums = sums + chains(x[start : start + 32].float().t(), grad[start : start + 32].float())
        dw = sums if step == 0 else dw + sums
    assert torch.equal(dispatch.value_grad(grad, x, topology, torch.float32), dw.flatten())
    forward = chains(weight.t().contiguous(), x.float().t().contiguous()).t().to(BFLOAT16)
    assert torch.equal(dispatch.forward(x, values, topology), forward)
    assert torch.equal(dispatch.input_grad(grad, values, topology), chains(grad.float(), weight.t()).to(BFLOAT16))


@pytest.mark.parametrize("pattern", ["v16", "b16x3", "b16x16"])
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_where_it_is(pattern, wrong):
    topology = fresh(pattern, (32, 48), 0.34)
    mask, values = topology.mask(), torch.ones(topology.nnz, dtype=BFLOAT16)
    kept = mask.nonzero()
    for sample, column, row in ((0, 3, 1), (17, 30, 31), (69, 47, 16)):
        x, grad = operand(70, 48, "row-major", 1, BFLOAT16), operand(70, 32, "row-major", 2, BFLOAT16)
        x[sample, column] = grad[sample, row] = wrong
        reached = torch.zeros(70, 32, dtype=torch.bool)
        reached[sample] = mask[:, column]
        assert torch.equal(~dispatch.forward(x, values, topology).isfinite(), reached)
        reached = torch.zeros(70, 48, dtype=torch.bool)
        reached[sample] = mask[row]
        assert torch.equal(~dispatch.input_grad(grad, values, topology).isfinite(), reached)
        grown = torch.zeros(32, 48)
        dw = dispatch.value_grad(grad, x, topology)
        # Values are in the order of grains, in a grain column by column.
        for one, number in zip(places(topology), dw, strict=True):
            grown[one] = number.float()
        hit = (torch.arange(48) == column) | (torch.arange(32) == row)[:, None]
        assert torch.equal(~grown.isfinite(), hit & mask)
        assert len(kept) == topology.nnz


def places(topology):
    rows, columns = topology.pattern.rows, topology.pattern.columns
    pointers = topology.row_pointers.tolist()
    for group in range(topology.groups):
        for grain in topology.columns[pointers[group] : pointers[group + 1]].tolist():
            for column in range(columns):
                for row in range(rows):
                    yield rows * group + row, columns * grain + column


def test_a_weight_that_is_not_finite_reaches_its_row_alone():
    topology = Topology.full((16, 7), "v16")
    values = torch.ones(7 * 16, dtype=BFLOAT16)
    values[4 * 16 + 2] = torch.inf
    y = dispatch.forward(torch.ones(64, 7, dtype=BFLOAT16), values, topology)
    assert torch.equal(y.isinf(), (torch.arange(16) == 2).expand(64, 16))
    dx = dispatch.input_grad(torch.ones(64, 16, dtype=BFLOAT16), values, topology)
    assert torch.equal(dx.isinf(), (torch.arange(7) == 4).expand(64, 7))


def test_rows_that_keep_nothing_are_written():
    mask = torch.zeros(48, 32, dtype=torch.bool)
    mask[16:32, ::3] = True
    topology, bias = Topology.from_mask(mask, "v16"), torch.arange(48.0).to(BFLOAT16)
    values = torch.ones(topology.nnz, dtype=BFLOAT16)
    y = dispatch.forward(torch.ones(40, 32, dtype=BFLOAT16), values, topology, bias)
    assert torch.equal(y, (bias.float() + 11 * mask.any(1)).to(BFLOAT16).expand(40, 48))
    dx = dispatch.input_grad(torch.ones(40, 48, dtype=BFLOAT16), values, topology)
    assert torch.equal(dx, (16.0 * mask.any(0)).to(BFLOAT16).expand(40, 32))


def test_who_is_served_is_a_matter_of_kinds_alone(monkeypatch):
    def served(kind, pattern="b16x2", batch=2, numbers="bfloat16", values="bfloat16", isa="avx512"):
        given, topology = Operand(batch, 64, True, batch, numbers), Topology.random((64, 64), 0.5, pattern)
        return generated.operation(kind, topology, given, TARGETS[isa], values).startswith("amx_")

    assert all(served(kind) and served(kind, "v16", 4096) for kind in generated.KERNELS)
    assert served("value_grad", values="float32")
    assert not served("forward", values="float32")
    assert not served("input_grad", values="float32")
    for other in ({"pattern": "v8"}, {"batch": 1}, {"numbers": "float16", "values": "float16"}, {"isa": "avx2"}):
        assert not any(served(kind, **other) for kind in generated.KERNELS)
    monkeypatch.setattr(generated, "without_tiles", lambda: "no leave")
    assert not any(served(kind) for kind in generated.KERNELS)


def test_explain_names_the_kernel():
    found = explanation.explain("forward", (64, 64, 32), 0.5, "b16x2", dtype="bfloat16")
    assert found.spec.operation == "amx_gather"
    assert "amx_sddmm" in explanation.explain("value_grad", (64, 64, 32), 0.5, "v16", dtype="bfloat16").choice


def test_measured_or_not_bits_are_the_same(monkeypatch):
    usual = products(fresh("v16", (256, 960), 0.2), 96, "column-major")
    monkeypatch.setattr(tuning, "SMALL", 0)
    monkeypatch.setenv("POLLARD_TUNING", "measure")
    assert_same(products(fresh("v16", (256, 960), 0.2), 96, "column-major"), usual)


def test_why_there_are_none_is_told(monkeypatch):
    def told(features, isas=("avx512",)):
        monkeypatch.setattr(target.binding, "get_host_cpu_features", lambda: features)
        monkeypatch.setattr(target, "host_isas", lambda: isas)
        return target.without_tiles.__wrapped__()

    both = {"amx-tile": True, "amx-bf16": True}
    monkeypatch.setattr(target.permission, "refusal", lambda: "no leave")
    assert "amx-tile and amx-bf16" in told({})
    assert told({**both, "amx-bf16": False}) == "this CPU tells of no amx-bf16"
    assert told(both, ("avx2",)) == "this CPU tells of no AVX-512"
    assert told(both) == "no leave"
    monkeypatch.setattr(target.permission, "refusal", lambda: "")
    assert not told(both)


def test_leave_is_asked_of_linux(monkeypatch):
    asked = []

    def linux(answer):
        def syscall(*numbers):
            asked.append(tuple(getattr(each, "value", each) for each in numbers))
            ctypes.set_errno(errno.EPERM)
            return answer

        monkeypatch.setattr(permission.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=syscall))
        return permission.refusal.__wrapped__()

    assert not linux(0)
    assert "Operation not permitted" in linux(-1)
    assert asked == [(158, 0x1023, 18)] * 2
    monkeypatch.setattr(permission.sys, "platform", "darwin")
    assert "darwin" in linux(0)


@only_with_tiles
@pytest.mark.parametrize("pattern", PATTERNS)
def test_instructions_do_what_their_manual_says(pattern, monkeypatch):
    for batch in (33, 300):
        ours = products(fresh(pattern), batch, dtype=torch.float32)
        with monkeypatch.context() as patch:
            tiled.pretend(patch)
            assert_same(products(fresh(pattern), batch, dtype=torch.float32), ours)
