"""Whoever watches or transforms torch's operations sees a sparse product, and gets the numbers of a dense one."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import pollard
from pollard.errors import InvalidInput, PollardError, TopologyError
from pollard.formats.topology import Topology
from pollard.nn import SparseLinear
from pollard.ops.operators import operators

# Torch's own forward-mode formulas are TorchScript, which is on its way out and says so.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=["unstructured", "v2"])
def pair(request):
    """A sparse layer in float64 and its dense twin."""
    torch.manual_seed(0)
    layer = SparseLinear.random(6, 4, 0.5, request.param).double()
    return layer, layer.to_dense()


def kept(layer, dense):
    """What stands at the kept weights in the last two dimensions of `dense`."""
    return dense.flatten(-2)[..., layer.topology.weight_positions()]


X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(module, parameters, x):
    return functional_call(module, parameters, (x,)).sigmoid().square().sum()


def detached(module):
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def test_gradients_of_torch_func(pair):
    ours, theirs = (grad(lambda p, m=module: loss(m, p, X))(detached(module)) for module in pair)
    torch.testing.assert_close(ours["values"], kept(pair[0], theirs["weight"]))
    torch.testing.assert_close(ours["bias"], theirs["bias"])


def test_gradients_of_each_sample(pair):
    ours, theirs = (
        vmap(grad(lambda p, x, m=module: loss(m, p, x[None])), (None, 0))(detached(module), X) for module in pair
    )
    torch.testing.assert_close(ours["values"], kept(pair[0], theirs["weight"]))
    torch.testing.assert_close(ours["bias"], theirs["bias"])


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: vmap(f)(X),
        lambda f: vmap(f, in_dims=1, out_dims=1)(X.reshape(1, 5, 6).expand(2, 5, 6)),
        lambda f: vmap(vmap(f))(X.reshape(5, 1, 6)),
        lambda f: jvp(f, (X,), (X.flip(0),))[1],
        lambda f: vjp(f, X)[1](torch.ones(5, 4, dtype=torch.float64))[0],
        lambda f: jacrev(f)(X),
        lambda f: jacfwd(f)(X),
        lambda f: hessian(lambda x: f(x).pow(3).sum())(X[:2]),
        lambda f: torch.autograd.functional.jacobian(f, X[:2], vectorize=True),
        lambda f: torch.autograd.functional.hvp(lambda x: f(x).pow(3).sum(), X, X)[1],
    ],
    ids=["vmap", "inner vmap", "vmap twice", "jvp", "vjp", "jacrev", "jacfwd", "hessian", "jacobian", "hvp"],
)
def test_transforms_of_the_input(pair, transform):
    ours, theirs = (transform(module) for module in pair)
    torch.testing.assert_close(ours, theirs)


def test_second_derivatives_in_the_values(pair):
    layer, dense = pair
    ours = hessian(lambda v: functional_call(layer, {"values": v}, (X,)).pow(3).sum())(layer.values.detach())
    theirs = hessian(lambda w: functional_call(dense, {"weight": w}, (X,)).pow(3).sum())(dense.weight.detach())
    positions = layer.topology.weight_positions()
    torch.testing.assert_close(ours, theirs.view(24, 24)[positions][:, positions])


def test_forward_mode_without_torch_func(pair):
    outcomes = []
    for module in pair:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
            outcomes.append(torch.autograd.forward_ad.unpack_dual(module(dual)).tangent)
    torch.testing.assert_close(*outcomes)


def test_a_fused_relu_and_several_values_at_once(pair):
    layer, dense = pair
    layer.activation = "relu"
    values = torch.stack([layer.values.detach() * scale for scale in (1, -2, 3)])
    ours = vmap(lambda v: functional_call(layer, {"values": v}, (X,)))(values)
    theirs = torch.stack([nn.functional.linear(X, dense.weight * scale, dense.bias).relu() for scale in (1, -2, 3)])
    torch.testing.assert_close(ours, theirs)


def test_an_ensemble_of_one_topology_is_right_and_one_of_several_is_refused(pair):
    layer = pair[0]
    twin = copy.deepcopy(layer)
    nn.init.normal_(twin.values)
    parameters, buffers = stack_module_state([layer, twin])
    ours = vmap(lambda p, b: functional_call(layer, (p, b), (X,)))(parameters, buffers)
    torch.testing.assert_close(ours, torch.stack([layer(X), twin(X)]))
    other = SparseLinear.random(6, 4, 0.5, layer.pattern, generator=torch.Generator().manual_seed(9)).double()
    parameters, buffers = stack_module_state([layer, other])
    with pytest.raises(TopologyError, match="signature"):
        vmap(lambda p, b: functional_call(layer, (p, b), (X,)))(parameters, buffers)
    torch.testing.assert_close(layer(X), pair[1](X))


def test_a_traced_function_computes_rather_than_repeats(pair):
    layer, dense = pair
    graph = make_fx(layer)(X)
    assert any("pollard.linear" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(2 * X), dense(2 * X))
    both = make_fx(grad(lambda x: layer(x).pow(3).sum()))(X)
    torch.testing.assert_close(both(2 * X), grad(lambda x: dense(x).pow(3).sum())(2 * X))


def test_jit_trace_and_a_clear_word_on_jit_script(pair, tmp_path):
    layer, dense = pair
    traced = torch.jit.trace(layer, X)
    torch.testing.assert_close(traced(X[:3]), dense(X[:3]))
    torch.jit.save(traced, tmp_path / "traced.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(X[:2]), dense(X[:2]))
    with pytest.raises(InvalidInput, match="densify_"):
        torch.jit.script(nn.Sequential(layer))


TRACES = {
    "jit.trace": torch.jit.trace,
    "make_fx": lambda model, x: make_fx(model)(x),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize("whole", [nn.Linear(6, 4), nn.Conv2d(2, 4, 3)], ids=["linear", "convolution"])
def test_a_trace_of_a_topology_that_has_moved_since_is_refused(trace, whole):
    model = nn.Sequential(copy.deepcopy(whole))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    x = torch.randn(3, 6) if isinstance(whole, nn.Linear) else torch.randn(3, 2, 5, 5)
    traced, apart = (trace(each, x) for each in (model, copy.deepcopy(model)))
    layer = next(each for each in model.modules() if isinstance(each, SparseLinear))
    expected = model(x)
    # Values that stand where they stood, by another object that says so, are no move.
    layer.keep_(Topology.from_mask(layer.topology.mask()), layer.values.detach().clone())
    torch.testing.assert_close(traced(x), expected)
    other = ~layer.topology.mask()
    layer.keep_(Topology.from_mask(other), torch.randn(int(other.sum())))
    with pytest.raises((TopologyError, RuntimeError), match="keeps that of its moment"):
        traced(x)
    torch.testing.assert_close(trace(model, x)(x), model(x))
    torch.testing.assert_close(apart(x), expected)


def test_counters_and_profilers_see_the_products(pair):
    layer = pair[0].float()
    x = X.float().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 5 * layer.values.numel()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x).sum().backward()
    seen = {event.key for event in profile.key_averages()}
    assert {"pollard::linear", "pollard::input_grad", "pollard::value_grad"} <= seen


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.relu_(),
        lambda y: y.add_(1),
        lambda y: y.mul_(2),
        lambda y: y.clamp_(0),
        lambda y: y.masked_fill_(y > 0.5, 0.0),
        lambda y: y[0].zero_() + y.sum(),
        lambda y: nn.functional.dropout(y, 1.0, inplace=True),
    ],
    ids=["relu", "add", "mul", "clamp", "fill", "view", "dropout"],
)
def test_outputs_are_written_to_as_those_of_a_dense_layer(pair, change, dims, reference, monkeypatch):
    if reference:
        monkeypatch.setenv("POLLARD_TARGET", "reference")
    layer, dense = (module.float() for module in pair)
    x = X.float() if dims == 2 else X.float().view(1, 5, 6)
    for module in (layer, dense):
        y = module(x)
        change(y)
        y.square().sum().backward()
    torch.testing.assert_close(layer.values.grad, kept(layer, dense.weight.grad), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-5)


def negated(x):
    """Equal to `x`, by a tensor whose memory holds -x."""
    found = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert found.is_neg()
    return found


@pytest.mark.parametrize(
    "disguise",
    [
        negated,
        lambda x: x[:1].expand(5, -1),
        lambda x: x.t().contiguous().t(),
        lambda x: torch.stack([x, x], 2)[..., 0],
        nn.Parameter,
        lambda x: torch._efficientzerotensor(tuple(x.shape)),
        lambda x: x.as_subclass(type("Tagged", (torch.Tensor,), {})),
    ],
    ids=["negated", "expanded", "column-major", "strided", "parameter", "zero", "subclass"],
)
def test_tensors_whose_memory_is_not_their_value(pair, disguise):
    layer, dense = (module.float() for module in pair)
    x = disguise(X.float())
    torch.testing.assert_close(layer(x).detach().as_subclass(torch.Tensor), dense(x).detach().as_subclass(torch.Tensor))
    upstream = negated(torch.randn(5, 4))
    for module in (layer, dense):
        module(X.float()).backward(upstream)
    torch.testing.assert_close(layer.values.grad, kept(layer, dense.weight.grad), rtol=1e-4, atol=1e-5)


def test_values_whose_memory_is_not_their_value(pair):
    layer, dense = (module.float() for module in pair)
    layer.values.data = negated(layer.values.detach())
    torch.testing.assert_close(layer(X.float()), dense(X.float()))


def test_fakes_and_meta_tensors_have_shapes_only(pair):
    layer = pair[0].float()
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(3, 6)).shape == (3, 4)
    with pytest.raises(InvalidInput, match="one device"):
        layer(torch.empty(3, 6, device="meta"))
    with torch.device("meta"):
        assert layer(X.float()).device.type == "cpu"
    layer.bias = nn.Parameter(torch.empty(4, device="meta"))
    with pytest.raises(PollardError, match="on meta"):
        layer(X.float())


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (lambda: torch.eye(6).to_sparse(), "to_dense"),
        (lambda: torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(3, 6)]), "nested"),
        (lambda: torch.ones(2, 6).to_mkldnn(), "to_dense"),
    ],
    ids=["sparse", "nested", "mkldnn"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls nested tensors a prototype
def test_other_layouts_are_refused_by_name(pair, x, said):
    with pytest.raises(InvalidInput, match=said):
        pair[0].float()(x())


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (6,)])
def test_symbolic_tracing(pair, shape):
    layer, dense = pair
    graph = torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU()))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(graph(x), dense(x).relu())


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="torch has no name for it before 2.9")
@pytest.mark.parametrize("of", ["", "convolution_"])
@pytest.mark.parametrize("kind", ["linear", "input_grad", "value_grad"])
def test_compilers_leave_operators_out_of_cuda_graphs(kind, of):
    # Their index arrays are read by the host: a graph would go on with those that it was captured with.
    name = {"convolution_linear": "convolution"}.get(of + kind, of + kind)
    assert torch.Tag.cudagraph_unsafe in getattr(operators(), name).default.tags
