"""What only CUDA has: streams, graphs, a compiler of its own and scaled gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pollard
from pollard.errors import InvalidInput
from pollard.nn import SparseLinear
from tried import DEVICE, close, only_cuda, seeded, untuned

pytestmark = [
    untuned,
    only_cuda,
    # Torch says so of any backward pass on another stream than the one before.
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match:UserWarning"),
    # And of a capture that was refused before it began.
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning"),
]
draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 64, generator=draw), torch.randint(8, (64,), generator=draw)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8)).to(DEVICE, dtype)


def sparse_network(dtype=torch.float32, pattern="unstructured"):
    model = network(dtype)
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3, pattern=pattern))


def batch(dtype=torch.float32):
    return X.to(DEVICE, dtype), Y.to(DEVICE)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


# -- streams


def trained(method, side, between=lambda: None):
    """Losses and topologies of what is made and run on the default stream, and trained on `side`."""
    model, (x, y) = network(torch.float64), batch(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = {} if method == "static" else {"every": 2}
    sparse = pollard.sparse_training(model, optimizer, method, density=0.3, steps=12, seed=1, **options)
    model(x)
    losses = []
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(12):
            losses.append(step(model, sparse, x, y))
            between()
    torch.cuda.synchronize()
    return losses, [model[place].topology for place in (0, 2)]


@pytest.mark.parametrize("method", ["rigl", "set", "gmp", "static"])
def test_training_on_another_stream(method):
    losses, topologies = trained(method, torch.cuda.default_stream())
    spoiled = []

    def spoil():
        # The default stream takes whatever memory is free there, and goes on without waiting.
        with torch.cuda.stream(torch.cuda.default_stream()):
            spoiled.extend(torch.full((size,), torch.nan, device=DEVICE) for size in (1, 64, 128, 1024, 4096) * 4)
            del spoiled[:-40]

    others, moved = trained(method, torch.cuda.Stream(), spoil)
    torch.testing.assert_close(others, losses)
    assert all(one.same_as(other) for one, other in zip(topologies, moved, strict=True))


def test_index_arrays_that_one_stream_made_are_read_by_another():
    layer, x = (
        SparseLinear.random(512, 512, 0.2, device=DEVICE, generator=seeded()),
        torch.randn(256, 512, device=DEVICE),
    )
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    for each in (one, other):
        each.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(one):
        torch.cuda._sleep(100_000_000)
        first = layer(x)
    with torch.cuda.stream(other):
        second = layer(x)
    torch.cuda.synchronize()
    torch.testing.assert_close(first, second)


# -- graphs


def warmed_up(model, optimizer, x, y):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(model, optimizer, x, y)
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_graph_of_a_whole_step(pattern, dtype):
    model, (x, y) = sparse_network(dtype, pattern), batch(dtype)
    twin = copy.deepcopy(model)
    optimizer, other = (torch.optim.Adam(each.parameters(), 0.01, capturable=True) for each in (model, twin))
    warmed_up(model, optimizer, x, y)
    warmed_up(twin, other, x, y)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    for turn in range(4):
        x.copy_(batch(dtype)[0].roll(turn, 0))
        expected = step(twin, other, x, y)
        graph.replay()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_graph_of_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 8)).to(DEVICE)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
    x, y = torch.randn(64, 4, 6, 6, generator=seeded()).to(DEVICE), batch()[1]
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    warmed_up(model, optimizer, x, y)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
    for _ in range(2):
        x.copy_(x.roll(1, 0))
        graph.replay()
        slopes = [parameter.grad.clone() for parameter in model.parameters()]
        expected = F.cross_entropy(model(x), y)
        torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
        found = torch.autograd.grad(expected, list(model.parameters()))
        torch.testing.assert_close(slopes, list(found), rtol=1e-3, atol=1e-5)


def test_a_graph_of_what_moves_is_captured_anew():
    model, (x, y) = network(), batch()
    sparse = pollard.rigl(model, torch.optim.SGD(model.parameters(), 0.1), density=0.3, steps=12, every=3, seed=1)
    step(model, sparse, x, y)
    with pytest.raises(InvalidInput, match="captured in a CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sparse.step()
    while sparse.updates < 3:
        step(model, sparse, x, y)
    with pytest.raises(InvalidInput, match="has not run since its topology"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        model(x)
    torch.cuda.synchronize()
    expected = model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = model(x)
    graph.replay()
    torch.testing.assert_close(found, expected)


def test_graphed_callables():
    model, (x, y) = sparse_network(), batch()
    # Detached: of a backward pass that somebody holds the stream would have to wait for the one that is captured.
    expected = F.cross_entropy(model(x), y)
    expected.backward()
    expected = expected.detach()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    graphed = torch.cuda.make_graphed_callables(model, (x.clone(),))
    found = F.cross_entropy(graphed(x), y)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], gradients)


# -- precision


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_scaled_gradients(kind, fused, storage):
    model, (x, y) = network(), batch()
    optimizer = kind(model.parameters(), 0.01, fused=fused)
    sparse = pollard.rigl(model, optimizer, density=0.3, steps=20, every=4, seed=1, storage=storage)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    losses = []
    for turn in range(16):
        sparse.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(model(x if turn != 5 else x * torch.inf), y)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        taken = sparse.steps
        scaler.scale(loss).backward()
        scaler.step(sparse)
        scaler.update()
        if turn == 5:  # skipped for its infinities
            assert sparse.steps == taken
            torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0, check_stride=False)
        else:
            losses.append(loss.item())
    assert sparse.updates > 1
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None or parameter.grad.dtype is torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("method", ["rigl", "set", "top-kast", "gmp", "snfs", "gse"])
def test_methods_under_autocast(method):
    model, (x, y) = network(), batch()
    options = {"dense_memory": True} if method == "snfs" else {}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = pollard.sparse_training(model, optimizer, method, density=0.3, steps=12, every=3, **options)
    for _ in range(12):
        sparse.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        sparse.step()
    assert loss.isfinite()
    assert sparse.updates > 1


@pytest.mark.parametrize("batch", [64, 4096])
@pytest.mark.parametrize("pattern", ["unstructured", "v16", "b16x16"])
def test_products_are_in_single_precision_unless_less_is_allowed(pattern, batch):
    layer, x = (
        SparseLinear.random(512, 256, 0.2, pattern, generator=seeded()),
        torch.randn(batch, 512, generator=seeded(1)),
    )
    there, expected = copy.deepcopy(layer).to(DEVICE), layer(x).detach()
    close(there(x.to(DEVICE)).detach(), expected)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        torch.testing.assert_close(there(x.to(DEVICE)).detach().cpu(), expected, rtol=1e-2, atol=5e-3)
    finally:
        torch.set_float32_matmul_precision(before)


def test_convolutions_are_in_less_precision_where_torchs_own_are():
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)).to(DEVICE)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    x, weight = torch.randn(16, 64, 16, 16, device=DEVICE), model[0].weight.detach()
    for allowed in (False, True):
        with torch.backends.cudnn.flags(allow_tf32=allowed):
            expected = F.conv2d(x, weight, model[0].bias, padding=1)
            torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_deterministic_algorithms(dtype, pattern):
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            model, (x, y) = network(dtype), batch(dtype)
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            sparse = pollard.rigl(model, optimizer, density=0.3, steps=12, every=3, seed=1, pattern=pattern)
            found.append([step(model, sparse, x, y) for _ in range(12)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*map(torch.stack, found))


# -- compilers, transforms, and what runs things again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_compiled(mode, kind):
    model, (x, y) = sparse_network(), batch()
    if kind == "convolution":
        layers = nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8)
        model = nn.Sequential(*layers).to(DEVICE)
        pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
    compiled = torch.compile(copy.deepcopy(model), mode=mode)
    for _ in range(3):
        # Of a graph, outputs and gradients are there until the next call only, of nn.Linear too: compared before that.
        torch.compiler.cudagraph_mark_step_begin()
        outputs = []
        for each in (compiled, model):
            each.zero_grad()
            outputs.append(each(x))
            F.cross_entropy(outputs[-1], y).backward()
        torch.testing.assert_close(*outputs)
        for one, other in zip(compiled.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_while_the_topology_moves():
    model, (x, y) = network(), batch()
    sparse = pollard.rigl(model, torch.optim.SGD(model.parameters(), 0.1), density=0.3, steps=9, every=3, seed=1)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(9):
        loss = step(compiled, sparse, x, y)
    assert sparse.updates > 1
    torch.testing.assert_close(F.cross_entropy(compiled(x), y), F.cross_entropy(model(x), y))
    assert loss.isfinite()


def test_activation_checkpoints():
    model, (x, y) = sparse_network(), batch()
    expected = F.cross_entropy(model(x), y)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], gradients)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_transforms():
    model, (x, _) = sparse_network(torch.float64), batch(torch.float64)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def outputs(values, x):
        return torch.func.functional_call(model, values, (x,))

    torch.testing.assert_close(torch.func.vmap(model)(x[:, None]).squeeze(1), model(x))
    _, along = torch.func.jvp(lambda each: outputs(values, each), (x,), (torch.ones_like(x),))
    eps = 1e-6
    torch.testing.assert_close(along, (model(x + eps) - model(x - eps)) / (2 * eps), rtol=1e-4, atol=1e-6)
    slopes = torch.func.vmap(torch.func.grad(lambda v, each: outputs(v, each[None]).sum()), (None, 0))(values, x)
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(slopes["0.values"].sum(0), model[0].values.grad)
