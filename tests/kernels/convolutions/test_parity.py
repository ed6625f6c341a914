"""Convolutions by kernels against their slow twin: sizes, windows, patterns, dtypes, instruction sets, numbers of threads."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.activations import ACTIVATIONS
from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code import target
from pollard.kernels.code.target import host_isas
from pollard.kernels.convolutions import calls, dispatch, passes, scattered
from pollard.kernels.convolutions.calls import Convolution
from pollard.kernels.convolutions.tuned import Tuned
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products import tuning
from pollard.ops.convolution_operators import unfolded

ISAS = tuple(isa for isa in host_isas() if isa != "neon" or host_isas()[0] == "neon")
PATTERNS = ("unstructured", "v2", "v4", "v8", "v16", "k3x3", "b4x2", "2:4")
DTYPES = ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float16))
SIDE = (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", request.param)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(shape, seed, dtype=torch.float32, layout="contiguous"):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if layout == "channels-last":
        return made.contiguous(memory_format=torch.channels_last)
    if layout == "part":
        return made.repeat(2, 2, 1, 1)[: shape[0], : shape[1]]
    return made


def products(convolution, x, values, bias, grad):
    """y, and the gradients in x and values, by kernels."""
    topology, window = convolution
    y = dispatch.forward(x, values, topology, window, bias)
    dx = dispatch.input_grad(grad, values, topology, window, tuple(x.shape[2:]))
    return y, dx, dispatch.value_grad(grad, x, topology, window)


def twins(convolution, x, values, bias, grad):
    topology, window = convolution
    x, values, bias, grad = (each.detach().double() for each in (x, values, bias, grad))
    x.requires_grad_()
    values.requires_grad_()
    y = unfolded(x, values, topology, bias, window)
    return y.detach(), *torch.autograd.grad(y, (x, values), grad)


def assert_parity(convolution, given, terms):
    # A sum of n rounded products is off by at most n units of rounding of the sum of their magnitudes, here doubled; half
    # precision rounds that sum once more.
    found, exact = products(convolution, *given), twins(convolution, *given)
    size = twins(convolution, *(each.abs() for each in given))
    for fast, wanted, magnitude, count in zip(found, exact, size, terms, strict=True):
        assert fast.shape == wanted.shape
        assert fast.is_contiguous()
        allowed = torch.finfo(torch.float32).eps * (count + 2) * magnitude
        if fast.dtype != torch.float32:
            kind = torch.finfo(fast.dtype)
            allowed += kind.eps / 2 * (wanted.abs() + allowed) + kind.smallest_normal
        assert ((fast.double() - wanted).abs() <= allowed + 1e-30).all()
    return found


def made(topology, window, samples, sizes, dtypes=DTYPES[0], layout="contiguous"):
    """What a convolution is given: x, values, bias and the gradient of y."""
    out, channels = topology.shape[0], topology.shape[1] // window.taps
    x = images((samples, channels, *sizes), 3, dtypes[0], layout)
    values, bias = (images((count,), seed, dtypes[1]) for seed, count in ((1, topology.nnz), (2, out)))
    return x, values, bias, images((samples, out, *window.extents(sizes)), 4, dtypes[0], layout)


def check(topology, window, samples, sizes, dtypes=DTYPES[0], layout="contiguous"):
    given = made(topology, window, samples, sizes, dtypes, layout)
    rows, columns = window.extents(sizes)
    terms = (topology.shape[1], topology.shape[0] * window.taps, samples * rows * columns)
    return assert_parity((topology, window), given, terms)


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("pattern", "dtypes"),
    [
        *((pattern, DTYPES[0]) for pattern in PATTERNS),
        *((name, pair) for name in ("v4", "k3x3") for pair in DTYPES[1:]),
    ],
    ids=str,
)
@pytest.mark.parametrize(("samples", "sizes"), [(3, (18, 17)), (19, (6, 5)), (70, (2, 2)), (1, (1, 40))])
def test_every_pattern_in_every_precision(isa, monkeypatch, pattern, dtypes, samples, sizes):
    # Scattered, where rows are enough, however little they keep.
    monkeypatch.setattr(scattered, "LEAST", 0)
    kind = Pattern.parse(pattern)
    topology = Topology.random((16, 4 * 9), kind.density or 0.3, kind, torch.Generator().manual_seed(0))
    check(topology, Window(*SIDE), samples, sizes, dtypes)


@pytest.mark.parametrize("layout", ["channels-last", "part"])
@pytest.mark.parametrize("sizes", [(18, 17), (5, 6)])
def test_images_may_lie_anyhow(isa, layout, sizes):
    topology = Topology.random((8, 5 * 9), 0.3, "v4", torch.Generator().manual_seed(0))
    check(topology, Window(*SIDE), 9, sizes, layout=layout)


@st.composite
def problems(draw):
    pairs = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    kernel, stride, dilation = pairs(1, 4), pairs(1, 3), pairs(1, 3)
    window = Window(kernel, stride, dilation, (pairs(0, 4), pairs(0, 4)))
    least = [max(1, dilation[axis] * (kernel[axis] - 1) + 1 - sum(window.padding[axis])) for axis in (0, 1)]
    sizes = tuple(size + more for size, more in zip(least, pairs(0, 20), strict=True))
    pattern = Pattern.parse(draw(st.sampled_from(("unstructured", "v2", "v4", "v8"))))
    channels, out = draw(st.integers(1, 5)), pattern.rows * draw(st.integers(1, 3))
    density = draw(st.sampled_from((0.05, 0.3, 1.0)))
    seed = draw(st.integers(0, 99))
    shape = out, channels * window.taps
    topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(seed))
    return (topology, window, draw(st.integers(1, 20)), sizes), draw(st.booleans())


@pytest.mark.parametrize("kind", ISAS)
@given(problem=problems())
@settings(
    max_examples=settings().max_examples // 3, suppress_health_check=[HealthCheck.too_slow]
)  # each compiles kernels
def test_any_window_over_any_images(kind, problem):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLLARD_TARGET", kind)
        patch.setattr(passes, "SHARE", 1)
        (given, scatters), before, found = problem, torch.get_num_threads(), []
        patch.setattr(scattered, "LEAST", 0 if scatters else 1 << 40)
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(check(*given))
        finally:
            torch.set_num_threads(before)
        for alone, together in zip(*found, strict=True):
            assert torch.equal(alone, together)


def test_any_number_of_threads_gives_the_same_bits(isa, threads, monkeypatch):
    # All threads, however little there is to share: of one image too.
    monkeypatch.setattr(passes, "SHARE", 1)
    window = Window(*SIDE)
    kinds = (
        ("unstructured", 37, (9, 9)),
        ("v4", 61, (4, 4)),
        ("v4", 7, (20, 20)),
        ("v4", 1, (20, 20)),
        ("unstructured", 1, (5, 5)),
    )
    for pattern, samples, sizes in kinds:
        topology = Topology.random((16, 6 * 9), 0.3, pattern, torch.Generator().manual_seed(0))
        given = made(topology, window, samples, sizes)
        found = []
        for count in (1, 2, 3, 7):
            threads(count)
            found.append(products((topology, window), *given))
        for other in found[1:]:
            assert all(map(torch.equal, found[0], other))


def small_tiles(monkeypatch):
    """So that sums rest from one to the next."""
    monkeypatch.setattr(passes, "RUN", 2)
    monkeypatch.setattr(passes, "caches", lambda: target.Caches(4096, 1 << 18, 1 << 20))


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", ["unstructured", "v4", "v16"])
@pytest.mark.parametrize(("samples", "sizes"), [(18, (21, 34)), (17, (8, 8)), (33, (3, 3))])
@pytest.mark.parametrize("dtypes", DTYPES[:2], ids=str)
def test_every_choice_gives_the_same_bits(isa, monkeypatch, pattern, samples, sizes, dtypes):
    monkeypatch.setattr(scattered, "LEAST", 0)
    small_tiles(monkeypatch)
    topology = Topology.random((16, 24 * 9), 0.3, pattern, torch.Generator().manual_seed(0))
    window, tried = Window(*SIDE), []

    def every(own, tensors):
        found = [own.call(choice)(*tensors) for choice in own.options()]
        assert all(torch.equal(found[0], other) for other in found[1:])
        tried.append(len(found))
        return own.call(own.options()[0])

    monkeypatch.setattr(Tuned, "best", every)
    check(topology, window, samples, sizes, dtypes)
    assert min(tried) >= 2


@pytest.mark.parametrize("sizes", [(21, 34), (3, 3)])
def test_tiles_of_channels_leave_dot_products_as_they_are(isa, monkeypatch, sizes):
    monkeypatch.setattr(passes, "caches", lambda: target.Caches(4096, 1 << 18, 1 << 20))
    topology = Topology.random((16, 24 * 9), 0.3, "unstructured", torch.Generator().manual_seed(0))
    window, found, widths = Window(*SIDE), [], []
    x, _, _, grad = made(topology, window, 18, sizes)
    tiling = calls.tiling
    monkeypatch.setattr(calls, "tiling", lambda topology, width: widths.append(width) or tiling(topology, width))
    for run in (1, 2, 1000):
        monkeypatch.setattr(calls, "RUN", run)
        found.append(Convolution(topology, window, target.current(), 1).value_grad(grad, x)(grad, x))
    assert widths[0] < widths[1] < widths[2] == topology.width
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


def test_what_is_measured_is_remembered(isa, monkeypatch, tmp_path):
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "SMALL", 0)
    small_tiles(monkeypatch)
    topology = Topology.random((16, 24 * 9), 0.3, "v4", torch.Generator().manual_seed(0))
    check(topology, Window(*SIDE), 18, (10, 10))
    entries = json.loads((tmp_path / f"tuning-v{tuning.VERSION}.json").read_text())
    assert len(entries) == 2
    assert all(key.startswith(f"convolution {isa}") for key in entries)
    raced = []
    monkeypatch.setattr(tuning, "_race", lambda *_: raced.append(1))
    check(
        Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns), Window(*SIDE), 18, (10, 10)
    )
    assert not raced


def test_rows_that_share_much_scatter_and_others_gather(isa):
    lanes = target.TARGETS[isa].lanes
    for pattern, density, operation in (("v4", 0.5, "transposed"), ("v4", 0.01, "convolve"), ("v2", 0.5, "convolve")):
        topology = Topology.random((16, 32 * 9), density, pattern, torch.Generator().manual_seed(0))
        for size in (4, lanes):
            made = Convolution(topology, Window(*SIDE), target.TARGETS[isa], 1)
            own, _ = made.back_over(torch.zeros(19, 16, size, size), torch.float32, (size, size))
            choice = own.options()[0]
            assert own.spec_of(choice).operation == operation
            assert own.describe(choice).startswith(f"{operation}.{isa}.v")


def test_a_sample_is_what_it_is_in_any_batch(isa):
    window = Window(*SIDE)
    topology = Topology.random((8, 3 * 9), 0.4, "unstructured", torch.Generator().manual_seed(0))
    for sizes in ((12, 12), (4, 4)):
        x, values, bias, _ = made(topology, window, 33, sizes)
        every = dispatch.forward(x, values, topology, window, bias)
        some = dispatch.forward(x[17:30], values, topology, window, bias)
        assert torch.equal(every[17:30], some)


def test_numbers_that_are_not_finite_stay_where_they_are_met(isa):
    window = Window((3, 3), (2, 2), (1, 1), ((0, 0), (0, 0)))
    topology = Topology.full((2, 2 * 9))
    for size, samples in ((8, 9), (17, 3)):
        for stride in (1, 2):
            window = window._replace(stride=(stride, stride))
            x, values, bias, grad = made(topology, window, samples, (size, size))
            x[1, 1, 4, 4] = torch.inf
            y, _, dw = products((topology, window), x, values, bias, grad)
            exact, _, slow = twins((topology, window), x, values, bias, grad)
            assert torch.equal(y.isfinite(), exact.isfinite())
            assert torch.equal(dw.isfinite(), slow.isfinite())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_fused(isa, name):
    window, topology = Window(*SIDE), Topology.full((4, 2 * 9))
    for size in (12, 4):
        x, values, bias, _ = made(topology, window, 9, (size, size))
        plain = dispatch.forward(x, values, topology, window, bias)
        fused = dispatch.forward(x, values, topology, window, bias, activation=name)
        torch.testing.assert_close(fused, ACTIVATIONS[name](plain), rtol=1e-5, atol=1e-6)
        assert plain.lt(0).any()


def test_shapes_that_do_not_fit_are_refused():
    topology, window = Topology.full((4, 2 * 9)), Window(*SIDE)
    with pytest.raises(InvalidInput, match="channels"):
        dispatch.serves(torch.zeros(2, 3, 8, 8), topology, window)
    with pytest.raises(InvalidInput, match="at least as large"):
        dispatch.serves(torch.zeros(2, 2, 1, 8), topology, window._replace(padding=((0, 0), (0, 0))))
    with pytest.raises(InvalidInput, match="values"):
        dispatch.forward(torch.zeros(2, 2, 8, 8), torch.zeros(3), topology, window, None)
    with pytest.raises(InvalidInput, match="bias"):
        dispatch.forward(torch.zeros(2, 2, 8, 8), torch.zeros(72), topology, window, torch.zeros(5))


def test_gradients_that_do_not_fit_are_refused():
    topology, window = Topology.full((4, 2 * 9)), Window(*SIDE)
    x, grad, values = torch.zeros(2, 2, 8, 8), torch.zeros(2, 4, 8, 8), torch.zeros(72)
    for wrong in (grad[:, :3], grad[..., :7], grad[0]):
        with pytest.raises(InvalidInput, match="grad of shape"):
            dispatch.input_grad(wrong, values, topology, window, (8, 8))
        with pytest.raises(InvalidInput, match="grad of shape"):
            dispatch.value_grad(wrong, x, topology, window)
    with pytest.raises(InvalidInput, match="values"):
        dispatch.input_grad(grad, values[1:], topology, window, (8, 8))
    with pytest.raises(InvalidInput, match="x of shape"):
        dispatch.value_grad(grad, x[:, :1], topology, window)
    with pytest.raises(InvalidInput, match="same batch, dtype"):
        dispatch.value_grad(grad.bfloat16(), x, topology, window)


def test_memory_that_is_gone_is_not_read():
    topology, window = Topology.full((4, 2 * 9)), Window(*SIDE)
    x, values = torch.zeros(2, 2, 8, 8), torch.zeros(72)
    dispatch.forward(x, values, topology, window, None)
    x.untyped_storage().resize_(0)
    with pytest.raises(InvalidInput, match="resized or freed"):
        dispatch.forward(x, values, topology, window, None)
