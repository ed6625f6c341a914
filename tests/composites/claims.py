"""What is done to weights of every kind, each as a claim about a network of that kind: it passes, or fails, or is refused.

A claim about weights that stay dense asks for them by name; what takes a model as it is takes them beside a sparse head.
"""

import copy
import tempfile
import warnings
from functools import cache, partial
from pathlib import Path

import torch
from torch.nn import functional as F

import pollard
from kinds import DENSE, KINDS, X, Y, network
from pollard.composites import Composite, composed
from pollard.errors import LeftDense, PollardError
from pollard.nn import SparseLinear
from pollard.selection import weight_layers

CRITERIA = ("snip", "grasp", "synflow", "magnitude", "wanda", "sparsegpt", "obd", "woodfisher")
METHODS = ("rigl", "set", "gmp", "srigl")
STEPS = 10


def chosen(kind):
    """`layers=` that takes the weights of `kind`."""
    return "within" if kind in DENSE else None


def drawn(model, **options):
    return pollard.prune(model, "random", 0.4, generator=torch.Generator().manual_seed(0), **options)


def partly_sparse(kind):
    """A network of `kind`, sparse wherever it can be."""
    model = network(kind)
    return pollard.sparsify_(model, drawn(model, layers="head" if kind in DENSE else None)).eval()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shape_of(model):
    return [(name, type(module)) for name, module in model.named_modules()]


def under_masks(model, plan):
    """What a dense model computes with all weights but those of `plan` at zero."""
    dense = copy.deepcopy(composed(model, plan)).eval()
    for name, topology in plan.items():
        weight = dense.get_submodule(name).weight.data
        if name in plan.updated:
            weight.copy_(pollard.SparseMatrix(plan.updated[name], topology).to_dense())
        weight.mul_(topology.mask())
    return dense(X)


def is_pruned(kind, criterion):
    """The model is only looked at, keeps as much as was asked for, and is then what it is under masks, sparse and dense again."""
    model = network(kind)
    before, shape = state_of(model), shape_of(model)
    # An input of ones is the same at every step: attention to any of them is as good, and queries and keys count little.
    allocation = "erk" if criterion in {"synflow", "ntk-sap"} else None
    draw = torch.Generator().manual_seed(0)
    plan = pollard.prune(model, criterion, 0.4, (X, Y), allocation=allocation, layers=chosen(kind), generator=draw)
    assert abs(plan.density - 0.4) <= 0.01
    assert shape == shape_of(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        expected = under_masks(model, plan)
        close(pollard.sparsify_(model, plan).eval()(X), expected)
        close(pollard.densify_(model)(X), expected)
    assert shape == shape_of(model)
    assert before.keys() == model.state_dict().keys()


def is_made_sparse_and_dense_again(kind):
    """By a plan that asks no criterion; torch's own modules come back, with their names."""
    model = network(kind)
    before, shape = state_of(model), shape_of(model)
    plan = drawn(model) if kind in KINDS else dict.fromkeys(inner(model), pollard.Topology.full((8, 8)))
    pollard.sparsify_(model, plan)
    assert {name for name, module in model.named_modules() if isinstance(module, SparseLinear)} == {*plan}
    pollard.densify_(model)
    assert shape == shape_of(model)
    assert before.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert ((tensor == before[name]) | (tensor == 0)).all(), name


def inner(model):
    return [name for name in weight_layers(model) if name.startswith("within")]


def is_trained(kind, method):
    """Compressed as under masks, to rounding, while the method moves the topology."""
    ends = [trained_weights(kind, method, storage) for storage in ("compressed", "masked")]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


def trained_weights(kind, method, storage):
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()  # state that is taken apart with the weights
    options = {"layers": chosen(kind), "storage": storage} | ({} if method == "static" else {"every": 3})
    sparse = pollard.sparse_training(model, optimizer, method, density=0.4, steps=STEPS, **options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        sparse.step()
    assert (sparse.updates > 0) == (method != "static")
    dense = pollard.densify_(copy.deepcopy(model))
    assert not any(isinstance(module, Composite | SparseLinear) for module in dense.modules())
    return {name: parameter.detach().clone() for name, parameter in dense.named_parameters()}


def is_saved_and_loaded(kind):
    """Its state makes a dense network what it is, from memory and from a file, and one of another topology too."""
    model = partly_sparse(kind)
    expected = model(X)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(model.state_dict(), path)
        for state in (model.state_dict(), path):
            close(pollard.load_sparse(network(kind), state).eval()(X), expected)
    other = network(kind)
    pollard.sparsify_(other, pollard.prune(other, "magnitude", 0.4, layers="head" if kind in DENSE else None))
    other.load_state_dict(model.state_dict())
    close(other.eval()(X), expected)


def is_compiled(kind):
    """In one graph, with its gradients: the numbers are those without."""
    torch.compiler.reset()
    model = partly_sparse(kind).train()
    # Steps of a recurrent module are traced one by one: two say what eight do, in a quarter of the time.
    x = X[:, :, :2] if kind.startswith(("RNN", "LSTM", "GRU")) else X
    found = []
    for called in (model, torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)):
        y = called(x)
        F.cross_entropy(y, Y).backward()
        found.append([y, *(parameter.grad for parameter in called.parameters())])
    close(*found)


def is_copied(kind):
    """With numbers of its own."""
    model = partly_sparse(kind)
    expected = model(X)
    other = copy.deepcopy(model)
    close(other(X), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    close(model(X), expected)


CLAIMS = {
    **{criterion: partial(is_pruned, criterion=criterion) for criterion in CRITERIA},
    **{method: partial(is_trained, method=method) for method in METHODS},
    "sparsify, densify": is_made_sparse_and_dense_again,
    "state_dict": is_saved_and_loaded,
    "masked twin": partial(is_trained, method="static"),
    "torch.compile": is_compiled,
    "deepcopy": is_copied,
}
# What takes a model as it is, whatever in it is sparse.
OF_MODELS = ("state_dict", "torch.compile", "deepcopy")


def expected(kind, column):
    return "refused" if kind in DENSE and column not in OF_MODELS else "works"


@cache
def reason(kind):
    """Why weights of `kind` are refused, as the error says it."""
    return got(lambda: drawn(network(kind), layers=chosen(kind)))


@cache
def left_alone(kind):
    """What becomes of weights of `kind` that nobody asked for by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftDense)  # which is what this asks
        if got(lambda: drawn(network(kind))):
            return "refused"
        return f"stays dense: `plan.coverage.left == {dict(drawn(network(kind)).coverage.left)}`"


def got(call):
    """What the error of a call says that it got; nothing where there is none."""
    try:
        call()
    except PollardError as error:
        return error.got
    return ""
