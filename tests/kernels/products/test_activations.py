"""Activations in kernels: as near the true numbers as is said, like torch's where there is no number, and never another bit."""

import math

import polynomials
import pytest
import torch

from parity import HALVES, forced, operand
from pollard.activations import ACTIVATIONS, activated
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.kernels.code.emit import activations
from pollard.kernels.products import dispatch, reference
from pollard.kernels.products.tuning import Choice

# In units of the last place of float32; results below SMALL are off by less than that.
BOUNDS = {"relu": 0, "gelu": 6, "gelu_tanh": 3, "silu": 3}
SMALL = 2e-36


def alone(x, activation):
    """The activation of each number of `x`, by the kernel of a layer that is the identity."""
    one = torch.ones(1, dtype=x.dtype)
    return dispatch.forward(x.reshape(-1, 1), one, Topology.full((1, 1)), activation=activation).reshape(x.shape)


def exactly(x, activation):
    x = x.double()
    # Torch's GELU takes the difference of nearly equal numbers where x is negative, in double precision too.
    true = {
        "gelu": lambda: x * torch.erfc(-x / math.sqrt(2)) / 2,
        "gelu_tanh": lambda: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    }
    return true.get(activation, lambda: ACTIVATIONS[activation](x))()


def numbers():
    made = torch.Generator().manual_seed(0)
    wide, narrow = (scale * torch.randn(60_000, generator=made) for scale in (1, 4))
    # Every size of float32, and both sides of where something ends.
    sizes = torch.exp2(torch.linspace(-120, 7, 20_000))
    ends = torch.tensor([0.0, 11.0, 13.2, 14.0, 86.6, 88.0, 128.0])
    around = torch.cat([ends, torch.nextafter(ends, torch.tensor(200.0)), torch.nextafter(ends, torch.tensor(-200.0))])
    return torch.cat([wide, narrow, sizes, -sizes, around, -around])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_as_exact_as_is_said(isa, activation):
    x = numbers()
    y, exact = alone(x, activation).double(), exactly(x, activation)
    size = exact.abs().float().clamp(min=SMALL)
    unit = torch.nextafter(size, torch.tensor(torch.inf)) - size
    off = (y - exact).abs() / unit
    normal = exact.abs() >= SMALL
    assert off[normal].max() <= BOUNDS[activation]
    assert (y - exact)[~normal].abs().max() <= SMALL
    assert normal.float().mean() > 0.4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_is_as_good_as_rounded_once(isa, activation):
    # The sum of two numbers of bfloat16 is nearly any number of float32.
    x = numbers()
    high = x.bfloat16()
    low = (x - high.float()).bfloat16()
    pairs, ones = torch.stack([high, low], 1), torch.ones(2, dtype=torch.bfloat16)
    y = dispatch.forward(pairs, ones, Topology.full((1, 2)), activation=activation).flatten().double()
    exact = exactly(high.float() + low.float(), activation)
    normal = exact.abs() >= SMALL
    unit = torch.exp2(exact.abs().log2().floor()) * torch.finfo(torch.bfloat16).eps
    assert ((y - exact).abs() / unit)[normal].max() <= 0.51
    assert (y - exact)[~normal].abs().max() <= SMALL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_is_what_torch_has(isa, activation, dtype):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e38, -3e38, 0.0, -0.0], dtype=dtype)
    y, theirs = alone(x, activation), ACTIVATIONS[activation](x.double()).to(dtype)
    torch.testing.assert_close(y, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.pairwise
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("pattern", "batch"),
    [("unstructured", 1), ("v8", 1), ("2:4", 1), ("unstructured", 2), ("b4x2", 200), ("v8", 200)],
)
def test_each_number_is_what_it_is_alone(isa, activation, pattern, batch):
    density = {"density": 0.5} if pattern == "2:4" else {"density": 0.2}
    topology = Topology.random((48, 96), **density, pattern=pattern, generator=torch.Generator().manual_seed(0))
    values, bias = torch.linspace(-1, 1, topology.nnz), torch.linspace(-3, 3, 48)
    x = operand(batch, 96, "row-major", 3)
    for offset in (None, bias):
        plain = dispatch.forward(x, values, topology, offset)
        fused = dispatch.forward(x, values, topology, offset, activation=activation)
        assert torch.equal(fused, alone(plain, activation))
        twin = reference.forward(x.double(), values.double(), topology.vectors, offset, activation=activation)
        torch.testing.assert_close(fused.double(), twin, rtol=1e-4, atol=1e-5)


@pytest.mark.pairwise
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "values_dtype"), HALVES)
@pytest.mark.parametrize("batch", [1, 7, 70])
def test_half_precision_is_rounded_once(isa, activation, dtype, values_dtype, batch):
    topology = Topology.random((32, 40), 0.3, "v4", torch.Generator().manual_seed(0))
    values, x = torch.linspace(-1, 1, topology.nnz).to(values_dtype), operand(batch, 40, "row-major", 3, dtype)
    fused = dispatch.forward(x, values, topology, activation=activation)
    sums = dispatch.forward(x.float(), values.float(), topology)
    once = exactly(sums, activation)
    assert fused.dtype == dtype
    # Half a unit of what it is rounded to, and what the order of additions makes of float32.
    allowed = torch.finfo(dtype).eps / 2 * once.abs() + 1e-5 * (1 + once.abs()) + torch.finfo(dtype).smallest_normal
    assert ((fused.double() - once).abs() <= allowed).all()


@pytest.mark.pairwise
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_same_bits_for_any_tile_panel_and_number_of_threads(isa, activation, dtype, monkeypatch):
    def run(threads):
        torch.set_num_threads(threads)
        topology = Topology.random((64, 900), 0.2, "v4", torch.Generator().manual_seed(0))
        x, values = operand(300, 900, "row-major", 3, dtype), torch.linspace(-1, 1, topology.nnz, dtype=dtype)
        bias = torch.linspace(-1, 1, 64, dtype=dtype)
        return dispatch.forward(x, values, topology, bias, activation=activation)

    usual = run(1)
    for choice in (Choice(1, 0), Choice(2, 16), Choice(3, 100), Choice(5, 899)):
        forced(monkeypatch, choice)
        for threads in (1, 3):
            assert torch.equal(run(threads), usual)


@pytest.mark.parametrize("name", polynomials.OF_ACTIVATIONS)
def test_polynomials_are_as_near_as_float32_lets_them(name):
    aim, ours = polynomials.OF_ACTIVATIONS[name], getattr(activations, name)
    assert len(ours) == aim.terms
    assert polynomials.largest_error(aim, ours) <= 1.1 * polynomials.largest_error(aim, polynomials.fit(aim))


def test_rows_that_keep_nothing_are_the_activation_of_their_bias(isa):
    topology = Topology.from_mask(torch.zeros(16, 8, dtype=torch.bool).index_fill(0, torch.tensor([3]), True))
    bias = torch.linspace(-4, 4, 16)
    for batch in (1, 40):
        y = dispatch.forward(torch.zeros(batch, 8), torch.ones(8), topology, bias, activation="gelu")
        assert torch.equal(y, alone(bias, "gelu").expand(batch, 16))


def test_other_activations_are_refused():
    with pytest.raises(InvalidInput, match="activation 'tanh'"):
        activated(torch.ones(2), "tanh")
