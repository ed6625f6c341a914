"""Convolutions as torch sees them: autograd, autocast, whoever watches."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import pollard
from pollard.errors import KernelError, KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels.code import once
from pollard.kernels.code.target import host_isas
from pollard.kernels.convolutions import dispatch
from pollard.kernels.convolutions.passes import Pass
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products import derived
from pollard.ops import convolution, convolution_operators

WINDOW = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
TOPOLOGY = Topology.random((4, 2 * 9), 0.4, "unstructured", torch.Generator().manual_seed(0))
pytestmark = pytest.mark.skipif(not host_isas(), reason="no kernels for this CPU")


def operands(size=9, samples=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = (samples, 2, size, size), (TOPOLOGY.nnz,), (4,)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def weight(values):
    flat = values.new_zeros(4 * 18).scatter(0, TOPOLOGY.weight_positions(), values)
    return flat.view(4, 2, 3, 3)


def test_gradients_are_those_of_torchs_own():
    x, values, bias = operands()
    y = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW)
    dense = functional.conv2d(x, weight(values), bias, padding=1)
    torch.testing.assert_close(y, dense)
    seed = torch.randn_like(y)
    for fast, slow in zip(
        torch.autograd.grad(y, (x, values, bias), seed),
        torch.autograd.grad(dense, (x, values, bias), seed),
        strict=True,
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_fused_relu_passes_what_it_passed():
    x, values, bias = operands()
    y = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW, activation="relu")
    plain = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW).relu()
    assert torch.equal(y, plain)
    for one, other in zip(
        torch.autograd.grad(y.square().sum(), (x, values, bias)),
        torch.autograd.grad(plain.square().sum(), (x, values, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_what_is_asked_for_is_computed(wanted):
    given = [each.detach() for each in operands()]
    for index in wanted:
        given[index].requires_grad_()
    x, values, bias = given
    convolution.convolve(x, values, TOPOLOGY, bias, WINDOW).sum().backward()
    assert [each.grad is not None for each in given] == [index in wanted for index in range(3)]


def test_the_twin_is_differentiable_twice():
    x, values, bias = (each.detach().double().requires_grad_() for each in operands(size=4, samples=2))
    assert torch.autograd.gradgradcheck(
        lambda *given: convolution_operators.unfolded(given[0], given[1], TOPOLOGY, given[2], WINDOW), (x, values, bias)
    )


def test_derivatives_of_derivatives_exist():
    x, values, bias = operands()
    penalty = []
    for way in (convolution.convolve, convolution_operators.unfolded):
        y = way(x, values, TOPOLOGY, bias, WINDOW)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        penalty.append(torch.autograd.grad(dx.square().sum(), (x, values)))
    for fast, slow in zip(*penalty, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)


def test_autocast_brings_images_to_half_precision_and_leaves_values():
    x, values, bias = operands(size=12)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW)
    assert y.dtype == torch.bfloat16
    exact = functional.conv2d(x.bfloat16().double(), weight(values).double(), bias.double(), padding=1)
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-3)
    y.sum().backward()
    assert (x.grad.dtype, values.grad.dtype) == (torch.float32, torch.float32)


def test_autocast_is_the_same_where_somebody_watches():
    x, values, bias = operands(size=12)
    with torch.autocast("cpu", torch.bfloat16):
        plain = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW)
        with torch.utils.flop_counter.FlopCounterMode(display=False):
            seen = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW)
    assert seen.dtype == torch.bfloat16
    assert torch.equal(plain, seen)
    (gradient,) = torch.autograd.grad(seen.sum(), values)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), values)[0])


@pytest.mark.parametrize("size", [(9, 9), (5, 4, 6)])
def test_by_panels_it_goes_at_once_too_any_number_of_times(monkeypatch, size):
    monkeypatch.setattr(dispatch, "by_panels", lambda _: True)
    monkeypatch.setattr(dispatch, "generated", lambda _: False)
    axes, kernel = len(size), (3,) * len(size)
    topology = Topology.random((4, 2 * 3**axes), 0.4, "unstructured", torch.Generator().manual_seed(0))
    window = Window(kernel, (1,) * axes, (1,) * axes, ((1, 1),) * axes)
    x, values, bias = (
        torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((2, 2, *size), topology.nnz, 4)
    )
    flat = values.new_zeros(topology.shape).flatten().scatter(0, topology.weight_positions(), values)
    dense = (functional.conv2d if axes == 2 else functional.conv3d)(x, flat.view(4, 2, *kernel), bias, padding=1)
    with torch.profiler.profile() as seen:
        convolution.convolve(x, values, topology, bias, window)
    assert any(each.key == "pollard::convolution" for each in seen.key_averages())  # somebody watched
    y = convolution.convolve(x, values, topology, bias, window)
    assert type(y.grad_fn).__name__ == "_EagerBackward"
    seed, found = torch.randn_like(y), []
    for made in (y, dense):
        slopes = torch.autograd.grad(made, (x, values, bias), seed, create_graph=True)
        found.append([made, *slopes, *torch.autograd.grad(slopes[0].square().sum() + slopes[1].sum(), (x, values))])
    torch.testing.assert_close(*found)


def test_what_the_gradient_in_the_input_turns_is_counted():
    topology = copy.deepcopy(TOPOLOGY)
    topology = Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns)
    x, values, bias = operands()
    convolution.convolve(x, values, topology, bias, WINDOW)
    before = derived.derived_bytes(topology)
    convolution.convolve(x, values, topology, bias, WINDOW).sum().backward()
    # A place in 4 bytes, and a column in 2, for each kept weight.
    assert derived.derived_bytes(topology) - before >= 6 * topology.nnz


def test_what_no_kernel_computes_is_left_to_others():
    x, values, bias = operands()
    doubles = [each.double() for each in (x, values, bias)]
    assert convolution.convolve(doubles[0], doubles[1], TOPOLOGY, doubles[2], WINDOW) is None
    assert convolution.convolve(x[:0], values, TOPOLOGY, bias, WINDOW) is None
    one = torch.func.vmap(lambda each: torch.tensor(convolution.convolve(each, values, TOPOLOGY, bias, WINDOW) is None))
    assert one(x.unsqueeze(1)).all()


def test_operators_are_what_torch_expects_of_operators():
    x, values, bias = operands(size=5)
    both, window = TOPOLOGY.handed, convolution_operators.flat(WINDOW)
    grad = torch.randn(3, 4, 5, 5, requires_grad=True)
    for relu in (False, True):
        torch.library.opcheck(torch.ops.pollard.convolution, (x, values, *both, bias, 18, "unstructured", relu, window))
    torch.library.opcheck(
        torch.ops.pollard.convolution_input_grad, (grad, values, *both, 18, "unstructured", window, [5, 5])
    )
    torch.library.opcheck(torch.ops.pollard.convolution_value_grad, (grad, x, *both, 18, "unstructured", window))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_watched_is_the_same_product(dtype):
    x, values, bias = operands(dtype=dtype)
    window = convolution_operators.flat(WINDOW)
    seen = torch.ops.pollard.convolution(x, values, *TOPOLOGY.handed, bias, 18, "unstructured", False, window)
    torch.testing.assert_close(seen, functional.conv2d(x, weight(values), bias, padding=1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        profiled = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW)
        profiled.sum().backward()
    assert torch.equal(profiled, seen)
    names = {each.key for each in profile.key_averages()}
    assert names >= {f"pollard::convolution{kind}" for kind in ("", "_input_grad", "_value_grad")}


def test_the_second_derivative_of_operators_is_torchs():
    x, values, bias = operands(size=4, samples=2, dtype=torch.float64)
    window = convolution_operators.flat(WINDOW)
    assert torch.autograd.gradgradcheck(
        lambda x, values, bias: torch.ops.pollard.convolution(
            x, values, *TOPOLOGY.handed, bias, 18, "unstructured", False, window
        ),
        (x, values, bias),
    )


def test_a_compiled_network_is_one_graph_and_runs_the_kernels():
    model, x = sparse(), torch.randn(9, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).square().sum().backward()
    found = model[0].linear.values.grad.clone()
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(found, model[0].linear.values.grad, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(model.eval(), (x,))
    assert any("pollard.convolution" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), model(x))


def test_operations_are_counted_for_each_kept_weight():
    x, values, bias = operands()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        convolution.convolve(x, values, TOPOLOGY, bias, WINDOW).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * TOPOLOGY.nnz * 3 * 9 * 9


def test_an_input_changed_before_the_backward_pass_is_noticed():
    x, values, bias = (each.detach() for each in operands())
    y = convolution.convolve(x, values.requires_grad_(), TOPOLOGY, bias, WINDOW)
    x.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_results_may_be_written_to():
    x, values, bias = operands()
    y = convolution.convolve(x, values, TOPOLOGY, bias, WINDOW)
    plain = y.detach().clone()
    assert torch.equal(functional.relu_(y), plain.relu())
    y.sum().backward()


def test_a_kernel_that_does_not_compile_leaves_it_to_the_twin(monkeypatch):
    def refuse(*_, **__):
        raise KernelError("a refusal", "code", "Nothing.")

    monkeypatch.setattr(Pass, "best", refuse)
    monkeypatch.setattr(once, "_told", set())
    x, values, bias = operands(size=11)
    topology = copy.deepcopy(TOPOLOGY)
    with pytest.warns(KernelFallback):
        y = convolution.convolve(x, values, topology, bias, WINDOW)
    torch.testing.assert_close(y, functional.conv2d(x, weight(values), bias, padding=1))
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(functional.conv2d(x, weight(values), padding=1).sum(), x)[0])


def sparse(storage="compressed"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2))
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", density=0.3), storage=storage)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_whoever_watches_the_layer_sees_what_it_is_given(storage):
    model, seen = sparse(storage), []
    x = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    plain = model(x)
    handle = model[0].linear.register_forward_hook(lambda layer, given, result: seen.append(given[0].shape))
    watched = model(x)
    handle.remove()
    assert seen == [(3 * 12 * 12, 18)]
    torch.testing.assert_close(plain, watched)


def test_both_storages_compute_the_same():
    x = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sparse()(x), sparse("masked")(x))


def test_kernels_of_pairs_of_channels_are_kept_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", density=0.25, pattern="k3x3"))
    mask = model[0].linear.topology.mask().view(8, 6, 9)
    assert torch.equal(mask.any(-1), mask.all(-1))
    assert mask.all(-1).sum() == 12
    dense = pollard.densify_(copy.deepcopy(model))
    x = torch.randn(9, 6, 10, 10)
    torch.testing.assert_close(model(x), dense(x))


# -- as on a GPU, where torch's own convolutions take panels of the weight: of one to three axes, and transposed


PANELS = [
    WINDOW,
    Window((3,), (2,), (1,), ((1, 2),)),
    Window((2, 1, 3), (1, 2, 1), (1, 1, 2), ((1, 1), (0, 0), (0, 1))),
    Window((3,), (2,), (1,), ((1, 1),), (1,)),
    Window((3, 2), (2, 1), (1, 2), ((1, 1), (0, 0)), (1, 0)),
    Window((2, 1, 2), (2, 1, 1), (1, 1, 1), ((0, 0), (0, 0), (1, 1)), (1, 0, 0)),
]


@pytest.fixture
def by_panels(monkeypatch):
    monkeypatch.setattr(convolution.dispatch, "by_panels", lambda _: True)


def panelled(window):
    generator = torch.Generator().manual_seed(0)
    shape = 4 * window.row_taps, 2 * window.column_taps
    topology = Topology.random(shape, 0.5, "unstructured", generator)
    sizes = (2, 2, *(4, 5, 6)[: len(window.kernel)]), (topology.nnz,), (4,)
    x, values, bias = (torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes)
    return topology, x, values, bias, (*topology.handed, bias, shape[1], "unstructured")


@pytest.mark.parametrize(
    "window", PANELS, ids=lambda window: f"{len(window.kernel)} axes" + (", transposed" if window.added else "")
)
def test_a_window_is_what_it_was(window):
    assert convolution_operators.window_of(convolution_operators.flat(window)) == window


@pytest.mark.parametrize(
    "window", PANELS, ids=lambda window: f"{len(window.kernel)} axes" + (", transposed" if window.added else "")
)
def test_operators_of_panels_are_what_torch_expects_of_operators(by_panels, window):
    topology, x, values, _, rest = panelled(window)
    flat = convolution_operators.flat(window)
    grad = torch.randn(2, 4, *window.extents(x.shape[2:]), dtype=x.dtype, requires_grad=True)
    both, where = topology.handed, (topology.shape[1], "unstructured", flat)
    torch.library.opcheck(torch.ops.pollard.convolution, (x, values, *rest, True, flat))
    torch.library.opcheck(torch.ops.pollard.convolution_input_grad, (grad, values, *both, *where, list(x.shape[2:])))
    torch.library.opcheck(torch.ops.pollard.convolution_value_grad, (grad, x, *both, *where))


@pytest.mark.parametrize(
    "window", PANELS, ids=lambda window: f"{len(window.kernel)} axes" + (", transposed" if window.added else "")
)
def test_the_second_derivative_of_panels_is_torchs(by_panels, window):
    _, x, values, bias, (*both, _, width, pattern) = panelled(window)
    flat = convolution_operators.flat(window)
    assert torch.autograd.gradgradcheck(
        lambda x, values, bias: torch.ops.pollard.convolution(x, values, *both, bias, width, pattern, False, flat),
        (x, values, bias),
    )


@pytest.mark.parametrize(
    "window", PANELS, ids=lambda window: f"{len(window.kernel)} axes" + (", transposed" if window.added else "")
)
def test_operations_of_panels_are_counted_for_each_kept_weight(by_panels, window):
    topology, x, values, bias, _ = panelled(window)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        convolution.convolve(x, values, topology, bias, window).sum().backward()
    places = window.extents(x.shape[2:]) if window.added is None else x.shape[2:]
    assert counter.get_total_flops() == 3 * 2 * topology.nnz * 2 * math.prod(places)


@pytest.mark.parametrize(
    "whole",
    [
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv3d(2, 4, 2, stride=2),
        nn.ConvTranspose1d(2, 4, 3, stride=2, output_padding=1),
    ],
    ids=lambda whole: type(whole).__name__,
)
def test_a_compiled_network_goes_by_panels(by_panels, whole, request):
    request.addfinalizer(torch.compiler.reset)  # torch compiles so many networks a process, and then no more
    axes = len(whole.kernel_size)
    model, x = nn.Sequential(copy.deepcopy(whole)), torch.randn(3, 2, *(8, 8, 8)[:axes])
    pollard.sparsify_(model, pollard.prune(model, "magnitude", density=0.5))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    nodes = torch.export.export(model, (x,)).graph.nodes
    assert any("pollard.convolution" in str(node.target) for node in nodes)
