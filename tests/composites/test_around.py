"""What code around does to modules rebuilt of linear layers: traced, exported, transformed, in other precisions, derived twice."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

import pollard
from kinds import KINDS, X, Y, network

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]
WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def exported(model, twin):
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("samples", min=2)},))
    for batch in (X, X[:3]):
        torch.testing.assert_close(program.module()(batch), twin(batch), rtol=1e-4, atol=1e-5)


@way
def on_meta(model, twin):
    assert copy.deepcopy(model).to("meta")(X.to("meta")).shape == twin(X).shape


@way
def traced(model, twin):
    torch.testing.assert_close(torch.jit.trace(model, X)(2 * X), twin(2 * X), rtol=1e-4, atol=1e-5)


@way
def written_for_onnx(model, twin):
    del twin
    file = io.BytesIO()
    torch.onnx.export(model, (X,), file, dynamo=False)
    assert file.tell() > 0


@way
def by_sample(model, twin):
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, (parameters, buffers), (x[None],)), y[None])

    found = vmap(grad(loss), (None, 0, 0))(parameters, X, Y)
    F.cross_entropy(model(X), Y).backward()
    F.cross_entropy(twin(X), Y).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name].mean(0), parameter.grad, rtol=1e-3, atol=1e-5)


@way
def in_half_precision(model, twin):
    found = copy.deepcopy(model).bfloat16()(X.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), twin(X), rtol=0.1, atol=0.1)


@way
def under_autocast(model, twin):
    with torch.autocast("cpu", torch.bfloat16):
        found = model(X)
    torch.testing.assert_close(found.float(), twin(X), rtol=0.1, atol=0.1)


@way
def in_double_precision(model, twin):
    torch.testing.assert_close(copy.deepcopy(model).double()(X.double()), twin.double()(X.double()))


@way
def derived_twice(model, twin):
    slopes = []
    for each in (model, twin):
        x = X.clone().requires_grad_()
        [slope] = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        slopes.append(x.grad)
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*:torch.jit.TracerWarning")
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_numbers_of_the_dense_network(kind, name):
    model = network(kind)
    model = pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.4)).eval()
    twin = pollard.densify_(copy.deepcopy(model))
    # Fused attention has no second derivative, in torch's own module.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        WAYS[name](model, twin)


def precisions(modules, *given):
    """The dtypes of all that is given back under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        made = [tree_leaves(module(*given)) for module in modules]
    return [[each.dtype for each in leaves if each is not None and each.is_floating_point()] for leaves in made]


ROWS = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "Conv3d": (nn.Conv3d(5, 4, (2, 2, 1)), ROWS[..., None]),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 4, 2), ROWS),
    "RNN": (nn.RNN(8, 4), ROWS),
    "RNN packed": (nn.RNN(8, 4), pack_sequence([*ROWS])),
    "LSTM": (nn.LSTM(8, 4, 2, bidirectional=True), ROWS),
    "LSTM projected": (nn.LSTM(8, 4, proj_size=2), ROWS),
    "LSTM packed": (nn.LSTM(8, 4), pack_sequence([*ROWS])),
    "GRU": (nn.GRU(8, 4), ROWS),
    "RNNCell": (nn.RNNCell(8, 4), ROWS[0]),
    "LSTMCell": (nn.LSTMCell(8, 4), ROWS[0]),
    "GRUCell": (nn.GRUCell(8, 4), ROWS[0]),
    "Conv1D of transformers": (Conv1D(4, 8), ROWS),
}


# Which says that it loops, instead.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_gives_the_precision_of_the_module_it_was_made_of(name, trained):
    module, given = LAYERS[name]
    model = nn.ModuleList([copy.deepcopy(module)])
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    with torch.set_grad_enabled(trained):
        sparse, dense = precisions([*model, module], given)
    assert sparse == dense


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_bilinear_layers_give_the_precision_of_their_inputs_under_autocast(inputs):
    model = nn.ModuleList([nn.Bilinear(8, 8, 4), nn.Bilinear(8, 8, 4, bias=False)])
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    assert precisions(model, ROWS.to(inputs), ROWS.to(inputs)) == [[inputs]] * 2
