"""Products of bfloat16 numbers two at a time: the bits that they have one by one, by an instruction or by its twin."""

from dataclasses import replace

import pytest
import torch

import paired
from parity import assert_parity, operand
from pollard.formats.topology import Topology
from pollard.kernels.code import jit, target
from pollard.kernels.products import dispatch, explanation, generated, product, tuning
from pollard.kernels.products.tuning import Choice, Decision

BFLOAT16 = torch.bfloat16
pytestmark = pytest.mark.skipif("avx512" not in target.host_isas(), reason="no vectors of 512 bits to take pairs in")


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "avx512")
    monkeypatch.setenv("POLLARD_TUNING", "default")
    monkeypatch.setattr(product, "SHARE", 1)
    monkeypatch.setattr(generated, "without_tiles", lambda: "tests of vectors")
    if not target.adds_pairs():
        paired.pretend(monkeypatch)


def fresh(pattern, shape=(48, 120), density=0.5):
    # What is prepared for one way is not for the other.
    return Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))


def products(topology, operands, values_dtype=BFLOAT16):
    values, bias = (
        torch.randn(size, generator=torch.Generator().manual_seed(1)).to(values_dtype)
        for size in (topology.nnz, topology.shape[0])
    )
    x, grad = operands
    return (
        dispatch.forward(x, values, topology, bias, activation="relu"),
        dispatch.input_grad(grad, values, topology),
        dispatch.value_grad(grad, x, topology, values_dtype),
    )


def operands(topology, batch, layout="row-major"):
    return [operand(batch, side, layout, 3 + side, BFLOAT16) for side in reversed(topology.shape)]


def paired_choice(key, candidates):
    # What would be the first guess, of those in pairs.
    found = candidates()
    return Decision(next((each for each in found if each.pairs), found[0]), "in pairs")


@pytest.fixture
def in_pairs(monkeypatch):
    def run(made):
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "known", paired_choice)
            return made()

    return run


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize(
    ("pattern", "batch", "layout", "values_dtype"),
    [
        ("unstructured", 2, "column-major", BFLOAT16),
        ("unstructured", 33, "column-major", BFLOAT16),
        ("unstructured", 64, "column-major", torch.float32),
        ("unstructured", 301, "row-major", BFLOAT16),
        ("2:4", 40, "strided", BFLOAT16),
        ("v2", 301, "row-major", BFLOAT16),
        ("v4", 64, "column-major", BFLOAT16),
        ("v16", 7, "row-major", BFLOAT16),
        ("b4x2", 96, "row-major", BFLOAT16),
        ("b2x3", 33, "row-major", BFLOAT16),
        ("b1x4", 70, "column-major", BFLOAT16),
        ("b1x5", 70, "column-major", BFLOAT16),
    ],
)
def test_pairs_have_the_bits_that_numbers_have_one_by_one(in_pairs, pattern, batch, layout, values_dtype):
    for shape, density in (((48, 120), 0.5), ((16, 60), 0.5 if pattern == "2:4" else 0.05)):
        given = operands(fresh(pattern, shape, density), batch, layout)
        ours, theirs = (
            run(lambda: products(fresh(pattern, shape, density), given, values_dtype))  # noqa: B023 - called at once
            for run in (in_pairs, lambda made: made())
        )
        assert_same(ours, theirs)


def test_pairs_are_what_runs(in_pairs, monkeypatch):
    monkeypatch.setattr(jit, "_loaded", {})
    topology = fresh("v4", (40, 88))
    in_pairs(lambda: products(topology, operands(topology, 130)))
    found = {spec.operation: spec for spec in jit._loaded if spec.operation != "pack"}
    assert set(found) == {"gather", "scatter", "sddmm"}
    assert all(spec.pairs and ".pairs." in str(spec) for spec in found.values())


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b4x2"])
def test_pairs_are_rounded_once(in_pairs, pattern):
    topology = fresh(pattern, (48, 100))
    for batch in (33, 300):
        in_pairs(lambda batch=batch: assert_parity(topology, batch, "row-major", BFLOAT16, BFLOAT16))


@pytest.mark.parametrize("pattern", ["unstructured", "v2"])
def test_tiles_panels_and_threads_cannot_be_seen(in_pairs, pattern, monkeypatch):
    def run():
        topology = fresh(pattern, (64, 900), 0.2)
        return products(topology, operands(topology, 300))

    usual = in_pairs(run)
    torch.set_num_threads(3)
    assert_same(in_pairs(run), usual)
    for choice in (Choice(1, 0), Choice(2, 16), Choice(3, 100)):
        paired_one = replace(choice, pairs=True)

        def known(key, _, one=paired_one):
            dots = key.startswith("sddmm")
            by_columns = replace(one, transposed=key.startswith("scatter") and pattern == "unstructured")
            return Decision(replace(one, vectors=4) if dots else by_columns, "forced")

        monkeypatch.setattr(tuning, "known", known)
        assert_same(run(), usual)


def test_what_is_not_finite_stays_where_it_is(in_pairs):
    # One sample and one feature each; a row keeps an odd number of columns, the last by itself.
    topology = Topology.from_mask(torch.rand(8, 31, generator=torch.Generator().manual_seed(0)) < 0.5)
    assert (topology.mask().sum(1) % 2 == 1).any()
    values = torch.ones(topology.nnz, dtype=BFLOAT16)
    for wrong in (torch.inf, torch.nan):
        for sample, column in ((0, 3), (17, 30), (69, 0)):
            x = operand(70, 31, "row-major", 1, BFLOAT16)
            x[sample, column] = wrong
            y = in_pairs(lambda x=x: dispatch.forward(x, values, topology))
            reached = torch.zeros_like(y, dtype=torch.bool)
            reached[sample] = topology.mask()[:, column]
            assert torch.equal(~y.isfinite(), reached)
            grad = operand(70, 8, "row-major", 2, BFLOAT16)
            kept = topology.mask().nonzero()[:, 1] == column
            dw = in_pairs(lambda x=x, grad=grad: dispatch.value_grad(grad, x, topology, BFLOAT16))
            assert torch.equal(~dw.isfinite(), kept)


def test_a_weight_that_is_not_finite_reaches_its_row_alone(in_pairs):
    topology = Topology.full((6, 7))
    values = torch.ones(42, dtype=BFLOAT16)
    values[2 * 7 + 4] = torch.inf
    y = in_pairs(lambda: dispatch.forward(torch.ones(64, 7, dtype=BFLOAT16), values, topology))
    assert torch.equal(y.isinf(), (torch.arange(6) == 2).expand(64, 6))


def test_pairs_are_tried_where_the_cpu_has_them_and_the_numbers_are_bfloat16(monkeypatch):
    def tried(dtype, operation="forward"):
        monkeypatch.setattr(tuning, "known", lambda key, candidates: tried_ones.extend(candidates()))
        tried_ones = []
        explanation.explain(operation, (64, 256, 64), 0.2, "v2", dtype=dtype)
        return {each.pairs for each in tried_ones}

    assert tried("bfloat16") == tried("bfloat16", "value_grad") == {False, True}
    assert tried("float32") == tried("float16") == {False}
    monkeypatch.setattr(product, "adds_pairs", lambda: False)
    assert tried("bfloat16") == {False}


def test_who_rounds_otherwise_is_no_candidate(monkeypatch):
    monkeypatch.setenv("POLLARD_TUNING", "measure")
    usual, other = Choice(4, 0), Choice(4, 0, pairs=True)
    runs = {usual: lambda: torch.zeros(3), other: lambda: torch.tensor([0.0, 1e-30, 0.0])}
    assert [choice for choice, _ in tuning._race([usual, other], runs.__getitem__)] == [usual]
    runs[other] = runs[usual]
    assert {choice for choice, _ in tuning._race([usual, other], runs.__getitem__)} == {usual, other}


def test_the_instruction_is_found_where_the_cpu_tells_of_it(monkeypatch):
    def found(features):
        monkeypatch.setattr(target.binding, "get_host_cpu_features", lambda: features)
        return target.adds_pairs.__wrapped__()

    assert found({"avx512bf16": True})
    assert not found({"avx512bf16": False})
    assert not found({})
    monkeypatch.setattr(target, "host_isas", lambda: ("avx2",))
    assert not found({"avx512bf16": True})
