"""What records a model, compiles it, counts it or writes it for another runtime."""

from __future__ import annotations

import copy
import io
from functools import cache
from pathlib import Path

import onnx.reference
import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.package import PackageExporter, PackageImporter
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter

import pollard
from compatibility.piece import Refused, piece
from compatibility.trial import (
    DENSITY,
    METHODS,
    STEPS,
    Training,
    X,
    dense,
    model_of,
    network,
    require_ordinary,
    require_weights,
)

FAMILY = "Tracing, compiling, exporting"
OF_ITS_MOMENT = "it keeps the topology of its moment, and is refused once that has moved: trace again"
JIT = ((r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),)
ONNX = (
    *JIT,
    (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    (r"The feature will be removed", DeprecationWarning),
    (r".*treespec, LeafSpec.* is deprecated", FutureWarning),
)
x = X[:16]
ROWS = ({0: Dim("rows", min=2)},)


def require_output(found, model, at=x):
    torch.testing.assert_close(found, dense(model)(at))


@piece(FAMILY, "`make_fx`", note=OF_ITS_MOMENT)
def _(method):
    model = model_of(method)
    # Without leave for real parameters torch refuses those of an `nn.Linear` too.
    for options in ({}, {"tracing_mode": "symbolic", "_allow_non_fake_inputs": True}):
        traced = make_fx(model, **options)(x)
        assert "pollard" in traced.code
        require_output(traced(2 * x), model, 2 * x)
    gradient = make_fx(torch.func.grad(lambda a: model(a).square().sum()))(x)
    twin = dense(model)
    torch.testing.assert_close(gradient(2 * x), torch.func.grad(lambda a: twin(a).square().sum())(2 * x))


@piece(FAMILY, "`fx.symbolic_trace`", note="it calls sparse layers, as it does torch's own")
def _(method):
    model = model_of(method)
    require_output(torch.fx.symbolic_trace(model)(X), model, X)


@piece(
    FAMILY,
    "`jit.trace`, saved and loaded",
    ignored=JIT,
    note=OF_ITS_MOMENT,
)
def _(method):
    model = model_of(method).eval()
    traced = torch.jit.trace(model, x)
    require_output(traced(X), model, X)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    require_output(torch.jit.load(file)(X), model, X)


@piece(
    FAMILY,
    "`jit.script`",
    refused=Refused("densify_|torch.export", "it compiles Python itself: `torch.export`, or `densify_` first"),
    ignored=JIT,
)
def _(method):
    model = model_of(method)
    require_output(torch.jit.script(model)(x), model)


@piece(FAMILY, "`jit.trace` after `densify_`", ignored=JIT)
def _(method):
    model = model_of(method).eval()
    require_output(torch.jit.trace(pollard.densify_(model), x)(X), model_of(method), X)


@piece(FAMILY, "`torch.compile(fullgraph=True)`, forward and backward, batches of any size")
def _(method):
    torch.compiler.reset()
    model = Training(method).model if method != "rigl" else pollard.sparsify_(network(), _plan())
    twin = dense(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (16, 30, 7):
        for each, called in ((model, compiled), (twin, twin)):
            each.zero_grad()
            called(X[:size]).square().sum().backward()
        torch.testing.assert_close(compiled(X[:size]), twin(X[:size]))
        torch.testing.assert_close(model[0].bias.grad, twin[0].bias.grad)


def _plan():
    return pollard.prune(network(), "magnitude", DENSITY)


@piece(
    FAMILY,
    "`torch.compile` around training, with a topology that moves",
    ignored=((r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed", UserWarning),),
)
def _(method):
    torch.compiler.reset()
    training = Training(method)
    training.go(called=torch.compile(training.model, backend="aot_eager"))
    require_ordinary(training)


@cache
def four():
    """The models of all methods as one, since compiling costs the same."""
    torch.compiler.reset()
    return Four([model_of(method).eval() for method in METHODS])


class Four(nn.Module):
    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, a):
        return [model(a) for model in self.models]


@cache
def inductor():
    compiled = torch.compile(four(), fullgraph=True)
    with torch.no_grad():
        return compiled(x)


@piece(FAMILY, "`torch.compile` by inductor", ignored=JIT)
def _(method):
    require_output(inductor()[METHODS.index(method)], model_of(method))


@cache
def exported():
    return torch.export.export(four(), (x,), dynamic_shapes=(ROWS[0],))


@piece(FAMILY, "`torch.export`, saved and loaded, batches of any size", ignored=ONNX, note=OF_ITS_MOMENT)
def _(method):
    program = exported()
    at = METHODS.index(method)
    require_output(program.module()(X)[at], model_of(method), X)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    require_output(torch.export.load(file).module()(X)[at], model_of(method), X)


@cache
def inductor_package():
    path = torch._inductor.aoti_compile_and_package(exported(), package_path=str(Path("four.pt2").absolute()))
    with torch.no_grad():
        return torch._inductor.aoti_load_package(path)(X)


@piece(FAMILY, "AOTInductor, in Python", ignored=ONNX, note="`import pollard` where the package is loaded")
def _(method):
    require_output(inductor_package()[METHODS.index(method)], model_of(method), X)


@cache
def onnx_of_four(*, dynamo, densified=False):
    model = pollard.densify_(copy.deepcopy(four())) if densified else four()
    torch.onnx.export(model.eval(), (x,), "model.onnx", dynamo=dynamo, verbose=False, input_names=["x"])
    found = onnx.reference.ReferenceEvaluator("model.onnx").run(None, {"x": x.numpy()})
    return [torch.from_numpy(each) for each in found]


@piece(FAMILY, "ONNX, `dynamo=True`", ignored=ONNX, note="the file holds what is kept; runtimes spread it out")
def _(method):
    require_output(onnx_of_four(dynamo=True)[METHODS.index(method)], model_of(method))


@piece(FAMILY, "ONNX, `dynamo=False`", ignored=ONNX, note="the same")
def _(method):
    require_output(onnx_of_four(dynamo=False)[METHODS.index(method)], model_of(method))


@piece(FAMILY, "ONNX after `densify_`, both exporters", ignored=ONNX)
def _(method):
    for dynamo in (True, False):
        require_output(onnx_of_four(dynamo=dynamo, densified=True)[METHODS.index(method)], model_of(method))


@piece(FAMILY, "the profiler: products by name")
def _(method):
    model = model_of(method)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        model(x).sum().backward()
    counts = {event.key: event.count for event in watched.key_averages()}
    assert counts["pollard::linear"] == 3
    assert counts["pollard::value_grad"] == 3
    assert counts["pollard::input_grad"] == 2


@piece(FAMILY, "`FlopCounterMode`")
def _(method):
    model = model_of(method)
    with FlopCounterMode(display=False) as counted:
        model(x).sum().backward()
    kept = [layer.values.numel() for layer in model if hasattr(layer, "values")]
    # Two a kept weight and example, forward and for both gradients; nobody asks for that of the first input.
    assert counted.get_total_flops() == 2 * len(x) * (3 * sum(kept) - kept[0])


@piece(FAMILY, "TensorBoard: `add_graph`, `add_histogram` of values and gradients", ignored=JIT)
def _(method):
    training = Training(method)
    with SummaryWriter("logs") as writer:
        writer.add_graph(training.model, x)
        for step in range(STEPS):
            training.go([step])
            for name, parameter in training.model.named_parameters():
                writer.add_histogram(name, parameter, step)
    require_ordinary(training)
    assert any(b"pollard" in path.read_bytes() for path in Path("logs").iterdir())


@piece(FAMILY, "`torch.package`, with pollard as extern", ignored=((r"TypedStorage is deprecated", UserWarning),))
def _(method):
    model = model_of(method)
    file = io.BytesIO()
    with PackageExporter(file) as package:
        package.extern(["pollard.**", "torch.**"])
        package.save_pickle("model", "model.pkl", model)
    file.seek(0)
    require_weights(PackageImporter(file).load_pickle("model", "model.pkl"), _of(model))


def _of(model):
    return {name: each.detach() for name, each in dense(model).named_parameters()}
