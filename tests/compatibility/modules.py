"""What torch does to modules and their parameters: copies, dtypes, devices, reparametrisations, quantisation."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compatibility.piece import Refused, piece
from compatibility.trial import (
    STEPS,
    UPDATES,
    Training,
    X,
    dense,
    model_of,
    ordinary,
    require_ordinary,
    require_weights,
    trained,
    weights,
)
from pollard.errors import NothingMoves, PollardWarning

FAMILY = "Modules, copies, files"
x = X[:16]


def same_output(found, model, at=x):
    torch.testing.assert_close(found, dense(model)(at))


@piece(FAMILY, "`copy.deepcopy` of a model in training, of all parts together")
def _(method):
    training = trained(method)
    model = copy.deepcopy(training.model)
    before = weights(model)
    training.go(range(STEPS - 2, STEPS))
    require_ordinary(training)
    require_weights(model, before)


@piece(FAMILY, "`pickle`, and `torch.save` of a whole model")
def _(method):
    model = model_of(method)
    require_weights(pickle.loads(pickle.dumps(model)), weights(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    require_weights(again, weights(model))
    same_output(again(x), model)


@piece(FAMILY, "`state_dict` of model, optimizer, method: resumed bit for bit")
def _(method):
    parts = trained(method)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (parts.model, parts.optimizer, parts.sparse)], file)
    file.seek(0)
    again = Training(method)
    for part, state in zip((again.model, again.optimizer, again.sparse), torch.load(file), strict=True):
        part.load_state_dict(state)
    again.go(range(STEPS - 2, STEPS))
    require_ordinary(again)


@piece(FAMILY, "`load_state_dict(assign=True)`")
def _(method):
    model, other = model_of(method), Training(method).model
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    require_weights(other, weights(model))
    same_output(other(x), model)


@piece(FAMILY, "`safetensors.torch`: `save_file`, `load_model`")
def _(method):
    model = model_of(method)
    safetensors.torch.save_file(model.state_dict(), "model.safetensors")
    other = Training(method).model
    other.load_state_dict(safetensors.torch.load_file("model.safetensors"))
    require_weights(other, weights(model))
    safetensors.torch.save_model(model, "whole.safetensors")
    safetensors.torch.load_model(other := Training(method).model, "whole.safetensors")
    require_weights(other, weights(model))


@piece(
    FAMILY,
    "hooks of modules, of `state_dict`, of parameters",
    ignored=(
        (r"Full backward hook is firing when gradients are computed with respect to module outputs", UserWarning),
    ),
)
def _(method):
    training, seen = Training(method), []
    layer = training.model[0]
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    layer.register_full_backward_hook(lambda module, into, outof: seen.append(outof[0].shape))
    layer.register_state_dict_post_hook(lambda module, state, prefix, local: seen.append(prefix))
    layer.bias.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.shape))
    training.backward(0)
    training.model.state_dict()
    assert seen[:2] == [(16, 12), (16, 24)]
    assert sorted(map(str, seen[2:])) == sorted(map(str, [torch.Size([16, 24]), torch.Size([24]), "0."]))
    training.sparse.optimizer.zero_grad()
    training.go()
    assert training.sparse.updates == UPDATES[method]
    for layer, expected in ((training.model[at], ordinary(method)[f"{at}.weight"]) for at in (0, 2, 4)):
        torch.testing.assert_close(layer.to_dense().weight, expected)


@piece(
    FAMILY,
    "`.double()`, `.half()`, `.to(torch.bfloat16)`",
    note="half precision has kernels; float64 runs on torch's own sparse products",
)
def _(method):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        model = model_of(method).to(dtype)
        assert {each.dtype for each in model.parameters()} == {dtype}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PollardWarning)  # which says once that such a dtype is slow
            found = model(x.to(dtype))
        # Rounded to `dtype` between layers, in another order than dense torch does: its own tolerance, twice over.
        exact = dense(model).double()(x.double())
        torch.testing.assert_close(
            found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps
        )


@piece(FAMILY, "`.to('meta')`, then `load_state_dict(assign=True)`")
def _(method):
    model = model_of(method)
    state, twin = copy.deepcopy(model.state_dict()), dense(model)
    model.to("meta")
    assert all(each.is_meta for each in model.parameters())
    model.load_state_dict(state, assign=True)
    torch.testing.assert_close(model(x), twin(x))


@piece(FAMILY, "`to_empty(device='cpu')`, then `load_state_dict`")
def _(method):
    model = model_of(method)
    state, twin = copy.deepcopy(model.state_dict()), dense(model)
    model(x)
    model.to_empty(device="cpu")
    assert [each.shape for each in model.parameters()] == [
        each.shape for name, each in state.items() if name.endswith(("values", "bias"))
    ]
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), twin(x))


@piece(FAMILY, "`parameters_to_vector`, `vector_to_parameters`")
def _(method):
    model = model_of(method)
    model(x)
    vector = parameters_to_vector(model.parameters())
    vector_to_parameters(2 * vector, model.parameters())
    same_output(model(x), model)
    torch.testing.assert_close(parameters_to_vector(model.parameters()), 2 * vector)


@piece(FAMILY, "`nn.init` and in-place writes to values")
def _(method):
    model = model_of(method)
    model(x)
    with torch.no_grad():
        nn.init.normal_(model[0].values)
        model[2].values.mul_(2).clamp_(-1, 1)
        model[4].values.data[0] = 3.0
    same_output(model(x), model)
    assert model[4].values[0].item() == 3.0


@piece(FAMILY, "`.data =`, `swap_tensors`, `set_` on values")
def _(method):
    model = model_of(method)
    model(x)

    def new(values):
        return torch.randn(values.shape) / 8  # as large as initial ones: sums that nearly cancel tell nothing

    model[0].values.data = new(model[0].values)
    torch.utils.swap_tensors(model[2].values, nn.Parameter(new(model[2].values)))
    with torch.no_grad():
        model[4].values.set_(new(model[4].values))
    same_output(model(x), model)
    twin = dense(model)
    for each in (model, twin):
        each(x).square().sum().backward()
    torch.testing.assert_close(model[0].bias.grad, twin[0].bias.grad)


@piece(FAMILY, "`named_parameters` by name or dimension, `requires_grad_`, `zero_grad`, `apply`, `train`, `eval`")
def _(method):
    model = model_of(method)
    assert sum("values" in name for name, _ in model.named_parameters()) == 3
    model.apply(lambda module: module.requires_grad_(False)).eval()
    assert not model(x).requires_grad
    model.requires_grad_().train()
    model(x).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
    model.zero_grad()
    assert all(each.grad is None for each in model.parameters())


@piece(FAMILY, "`parametrizations.weight_norm` on values", note="the norm is that of all kept values")
def _(method):
    model = model_of(method)
    doubled = dense(model)
    parametrizations.weight_norm(model[0], "values", dim=None)
    with torch.no_grad():
        model[0].parametrizations["values"].original0.mul_(2)
        doubled[0].weight.mul_(2)
    torch.testing.assert_close(model(x), doubled(x))
    model(x).sum().backward()
    assert model[0].parametrizations["values"].original1.grad.shape == model[0].values.shape
    parametrize.remove_parametrizations(model[0], "values")
    assert isinstance(model[0].values, nn.Parameter)
    require_weights(model, dict(doubled.named_parameters()))


@piece(
    FAMILY,
    "`weight_norm`, `spectral_norm`, `orthogonal`, new and old, on `weight`",
    refused=Refused(
        "weight", "there is no such parameter, and torch says so: `nn.utils.weight_norm` on `values`", by=KeyError
    ),
    ignored=((r"`torch.nn.utils.weight_norm` is deprecated", FutureWarning),),
)
def _(method):
    model = model_of(method)
    before = weights(model)
    for change in (
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.spectral_norm,
    ):
        with pytest.raises((KeyError, ValueError), match="weight"):
            change(model[0], "weight")
    require_weights(model, before)
    nn.utils.weight_norm(model[0], "weight")


@piece(
    FAMILY,
    "`nn.utils.weight_norm` on values",
    note="the norm is that of all kept values",
    ignored=((r"`torch.nn.utils.weight_norm` is deprecated", FutureWarning),),
)
def _(method):
    model = model_of(method)
    doubled = dense(model)
    nn.utils.weight_norm(model[0], "values", dim=None)
    with torch.no_grad():
        model[0].values_g.mul_(2)
        doubled[0].weight.mul_(2)
    torch.testing.assert_close(model(x), doubled(x))
    model(x).sum().backward()
    assert model[0].values_v.grad.shape == model[0].values_v.shape
    nn.utils.remove_weight_norm(model[0], "values")
    require_weights(model, dict(doubled.named_parameters()))


@piece(FAMILY, "`torch.nn.utils.prune` on values", note="zeros that are kept: `pollard.prune` takes them out")
def _(method):
    model = model_of(method)
    prune.l1_unstructured(model[0], "values", amount=0.5)
    zeros = int((model[0].values == 0).sum())
    assert zeros == round(0.5 * model[0].values.numel())
    out = model(x)
    prune.remove(model[0], "values")
    same_output(out, model)


@piece(
    FAMILY,
    "`quantize_dynamic` of the dense rest",
    ignored=(
        (r".*torch\.ao\.quantization.*", DeprecationWarning),
        (r"torch\.quantize_per_tensor.*are deprecated", UserWarning),
    ),
)
def _(method):
    model = nn.Sequential(model_of(method), nn.Linear(4, 4))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized[1], nn.Linear) or "quantized" in type(quantized[1]).__module__
    same_output(quantized[0](x), model[0])
    torch.testing.assert_close(quantized(x), dense(model)(x), rtol=0.05, atol=0.05)


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (2, 6)), nn.Linear(6, 12), nn.TransformerEncoder(layer, 2), Last(), nn.Linear(12, 4)
    )


class Last(nn.Module):
    def forward(self, a):
        return a[:, -1]


@piece(FAMILY, "`nn.TransformerEncoder`, trained, then in `eval` (the fast path)")
def _(method):
    pair = [Training(method, model=encoder(), storage=storage).go() for storage in ("compressed", "masked")]
    for each in pair:
        each.model.eval()
        expected = dense(each.model)(x)
        torch.testing.assert_close(each.model(x), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(each.model(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(pair[0].model), weights(pair[1].model), rtol=1e-4, atol=1e-5)


BY_PLACE = "it averages by position, and the topology moves: [`pollard.Averaged`](how-to/averaging.md) follows it"


@piece(
    FAMILY,
    "`AveragedModel`, SWA and EMA",
    refused={
        "rigl": Refused("average one whose topology moves by place", BY_PLACE),
        "set": Refused("average one whose topology moves by place", BY_PLACE),
        "gmp": Refused("The size of tensor a .* must match", BY_PLACE, by=RuntimeError),
    },
)
def _(method):
    training = Training(method)
    average = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    twin = Training(method, storage="masked")
    expected: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        for each in (training, twin):
            each.go([step])
        average.update_parameters(training.model)
        now = weights(twin.model)
        expected = {name: (expected[name] + now[name]) / 2 for name in now} if expected else now
    require_weights(average.module, expected)
    require_ordinary(training)


@piece(FAMILY, "`nn.DataParallel` without GPUs")
def _(method):
    training = Training(method)
    require_ordinary(training.go(called=nn.DataParallel(training.model)))


DCP = (
    (
        r"torch.distributed is (disabled, )?(un)?available.*|.*assuming the intent is to (save|load) in a single process.*",
        UserWarning,
    ),
    (r"TypedStorage is deprecated", UserWarning),
)


# The Sparsifier is not loaded with the rest: it counts on.
@piece(
    FAMILY,
    "`torch.distributed.checkpoint`, into a model that keeps as many weights",
    ignored=(*DCP, (r"step .* is past the .* that .* was planned for", NothingMoves)),
)
def _(method):
    training, again = trained(method), trained(method)
    folder = f"dcp-{method}"
    model_state, optimizer_state = get_state_dict(training.model, training.optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    twin = copy.deepcopy(again.model)
    for each in (again, training):
        each.go(range(STEPS - 2, STEPS))
    model_state, optimizer_state = get_state_dict(again.model, again.optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    require_weights(twin, weights(trained(method).model))
    set_state_dict(again.model, again.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    require_weights(again.model, weights(trained(method).model))
    same_output(again.model(x), again.model)
    again.go(range(STEPS - 2, STEPS))
    require_weights(again.model, weights(training.model))
