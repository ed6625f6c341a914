"""Every kind of weight x what is done to weights: one contract for all of them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from kinds import KINDS, X, Y, network
from pollard.composites import Composite, composed, holders
from pollard.composites.composite import kind_for
from pollard.errors import InvalidInput
from pollard.nn import SparseLinear

CRITERIA = (
    "snip",
    "grasp",
    "synflow",
    "magnitude",
    "wanda",
    "sparsegpt",
    "obd",
    "woodfisher",
    "exact-obs",
    "ntk-sap",
    "m-fac",
)
METHODS = ("static", "rigl", "set", "gmp", "srigl")
STEPS = 10


def weights(model):
    dense = pollard.densify_(copy.deepcopy(model))
    assert not any(isinstance(module, Composite | SparseLinear) for module in dense.modules())
    return {name: parameter.detach().clone() for name, parameter in dense.named_parameters()}


def test_the_linear_layers_are_all_there_is_to_prune():
    for kind in KINDS:
        plan = pollard.prune(network(kind), "magnitude", 0.5)
        assert not plan.coverage.left, kind


@pytest.mark.filterwarnings("ignore:the cut falls among scores of 0:pollard.errors.ScoresTie")  # the same
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pruned_and_made_sparse_and_dense_again(kind, criterion):
    model = network(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    # An input of ones is the same at every step: attention to any of them is as good, and queries and keys count little.
    allocation = "erk" if criterion in {"synflow", "ntk-sap"} else None
    draw = torch.Generator().manual_seed(0)
    plan = pollard.prune(model, criterion, 0.4, (X, Y), allocation=allocation, generator=draw)
    assert plan.density == pytest.approx(0.4, abs=0.01)
    # The model was only looked at.
    assert names == [name for name, _ in model.named_modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    dense = copy.deepcopy(composed(model, plan)).eval()
    with torch.no_grad():
        for name, topology in plan.items():
            layer = dense.get_submodule(name)
            updated = plan.updated.get(name)
            if updated is not None:
                layer.weight.copy_(pollard.SparseMatrix(updated, topology).to_dense())
            layer.weight.mul_(topology.mask())
        expected = dense(X)
        found = pollard.sparsify_(model, plan).eval()(X)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pollard.densify_(model)(X), expected, rtol=1e-4, atol=1e-5)
    assert names == [name for name, _ in model.named_modules()]
    assert before.keys() == model.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_snip_keeps_what_the_gradients_of_the_whole_say(kind):
    model = network(kind)
    plan = pollard.prune(model, "snip", 0.3, (X, Y), mode="eval")
    F.cross_entropy(model.eval()(X), Y).backward()
    scores = {}
    for name in plan:
        path = next((path for path in holders(model, [name])), None)
        if path is None:
            scores[name] = model.get_submodule(name).weight.grad * model.get_submodule(name).weight
            continue
        whole, part = model.get_submodule(path), name.removeprefix(f"{path}.")
        apart = kind_for(whole)(whole)
        source = whole.get_parameter(apart.parts(whole)[part])
        scores[name] = apart.matrix(part, source.grad * source)
    # Sums are not added in the same order: scores that are all but equal to the cut may fall on either side.
    together = torch.cat([score.detach().abs().flatten() for score in scores.values()])
    kept = torch.cat([plan.mask(name).flatten() for name in scores])
    assert together[kept].min() >= together[~kept].max() * (1 - 1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_sparse_as_its_masked_twin(kind, method):
    ends = []
    for storage in ("compressed", "masked"):
        model = network(kind)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()  # state that is taken apart with the weights
        options = {} if method == "static" else {"every": 3}
        sparse = pollard.sparse_training(model, optimizer, method, density=0.4, steps=STEPS, storage=storage, **options)
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            sparse.step()
        assert (sparse.updates > 0) == (method != "static")
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_is_loaded_and_copied(kind, tmp_path):
    model = network(kind)
    pollard.sparsify_(model, pollard.prune(model, "random", 0.4, generator=torch.Generator().manual_seed(0)))
    expected = model.eval()(X)
    other = network(kind).eval()
    torch.testing.assert_close(pollard.load_sparse(other, model.state_dict())(X), expected)
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    torch.testing.assert_close(pollard.load_sparse(network(kind), path).eval()(X), expected)
    torch.testing.assert_close(copy.deepcopy(model)(X), expected)
    third = network(kind).eval()
    pollard.sparsify_(third, pollard.prune(third, "magnitude", 0.4))
    third.load_state_dict(model.state_dict())
    torch.testing.assert_close(third(X), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", ["Conv2d", "LSTM", "MultiheadAttention", "Bilinear"])
def test_it_is_compiled(kind):
    torch.compiler.reset()
    model = network(kind)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.4))
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-4, atol=1e-5)
    F.cross_entropy(compiled(X), Y).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_call_that_fails_leaves_the_model_as_it_was():
    model = network("LSTM")
    plan = pollard.prune(model, "magnitude", 0.4)
    model.head.register_forward_hook(lambda *_: None)
    lstm = model.within
    with pytest.raises(InvalidInput, match="'head' with hooks"):
        pollard.sparsify_(model, plan)
    assert model.within is lstm
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InvalidInput, match="hooks"):
        pollard.rigl(model, optimizer, density=0.4, steps=10)
    assert model.within is lstm
    assert [id(each) for each in optimizer.param_groups[0]["params"]] == [id(each) for each in model.parameters()]


def test_what_stays_dense_of_what_is_taken_apart_is_trained_too():
    model = network("MultiheadAttention")
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    moments = optimizer.state[model.within.in_proj_weight]["exp_avg"].clone()
    sparse = pollard.static(model, optimizer, density=0.5, steps=10, layers=["*.q_proj"])
    dense = model.within.k_proj.weight
    torch.testing.assert_close(optimizer.state[dense]["exp_avg"], moments[8:16])
    before = dense.detach().clone()
    F.cross_entropy(model(X), Y).backward()
    sparse.step()
    assert not torch.equal(before, dense)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    assert isinstance(pollard.densify_(model).within, nn.MultiheadAttention)


def test_a_module_that_holds_layers_is_a_name_for_them():
    model = network("Conv2d")
    assert list(pollard.prune(model, "magnitude", 0.5, layers=["3"])) == ["3.linear"]
    plan = pollard.prune(model, "magnitude", 0.5, pattern={"*": "unstructured", "3": "v4"})
    assert [str(topology.pattern) for topology in plan.values()] == ["unstructured", "v4", "unstructured"]


def test_what_cannot_be_taken_apart_stays_dense_and_is_told():
    shared = nn.Conv2d(1, 4, 3)
    other = nn.Conv2d(1, 4, 3)
    other.weight = shared.weight
    model = nn.ModuleDict(
        {
            "shared": shared,
            "other": other,
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "normed": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
            "fc": nn.Linear(8, 8),
        }
    )
    plan = pollard.prune(model, "magnitude", 0.5, layers=["fc"])
    assert list(pollard.prune(model, "magnitude", 0.5, layers=lambda *_: True)) == ["fc"]
    assert sum(plan.coverage.left.values()) == 4


def test_erk_counts_channels_and_taps_of_a_convolution_apart():
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, (3, 5)), nn.Linear(64, 64))
    plan = pollard.prune(model, "random", 0.2, allocation="erk")
    sizes = (16, 32, 3, 3), (32, 64, 3, 5), (64, 64)
    raw = [sum(size) / torch.Size(size).numel() for size in sizes]
    scale = 0.2 * sum(torch.Size(size).numel() for size in sizes) / sum(sum(size) for size in sizes)
    for topology, share in zip(plan.values(), raw, strict=True):
        assert topology.density == pytest.approx(scale * share, abs=2e-3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = pollard.gmp(
        model, optimizer, density=0.2, steps=3, every=1, start_density=0.5, allocation="erk", layers=["0", "1"]
    )
    for _ in range(3):
        model[:2](torch.randn(2, 16, 9, 9)).sum().backward()
        sparse.step()
    pair = [layer.linear.density for layer in model[:2]]
    assert pair[0] / pair[1] == pytest.approx(raw[0] / raw[1], rel=0.01)


def test_a_subclass_with_modules_of_its_own_stays_dense():
    class Own(nn.Conv2d):
        def __init__(self):
            super().__init__(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)

    model = nn.Sequential(Own(), nn.Flatten(), nn.Linear(144, 4))
    plan = pollard.prune(model, "magnitude", 0.5)
    assert list(plan) == ["2"]
    assert plan.coverage.left == {"Own": 1}


def test_a_model_is_copied_only_where_what_is_chosen_is_taken_apart():
    class Locked(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("a lock cannot be copied")

    model = Locked(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    assert list(pollard.prune(model, "magnitude", 0.5, layers=["2"])) == ["2"]
    with pytest.raises(InvalidInput, match=r"cannot be copied, with '0' to be taken apart: a lock.*layers="):
        pollard.prune(model, "magnitude", 0.5)
    plan = pollard.plan_from_masks(model, {"0.linear": torch.ones(4, 9).tril()})
    assert list(plan) == ["0.linear"]
