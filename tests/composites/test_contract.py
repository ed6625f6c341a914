"""Every kind of weight x what is done to weights: one contract for all of them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from composites.claims import CLAIMS, expected, is_pruned, reason
from composites.page import page
from kinds import DENSE, KINDS, X, Y, network
from pollard.composites import holders
from pollard.composites.composite import kind_for
from pollard.errors import InvalidInput, NothingMatched, PollardError
from pollard.pruning.scoring import Scoring

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
# An input of ones through biases of zero.
ties = pytest.mark.filterwarnings("ignore:the cut falls among scores of 0:pollard.errors.ScoresTie")
compiling = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def test_the_linear_layers_are_all_there_is_to_prune():
    for kind in KINDS:
        plan = pollard.prune(network(kind), "magnitude", 0.5)
        assert not plan.coverage.left, kind


@ties
@compiling
@pytest.mark.parametrize("column", CLAIMS)
@pytest.mark.parametrize("kind", [*KINDS, *DENSE])
def test_a_cell_is_what_the_page_says(kind, column):
    if expected(kind, column) == "works":
        CLAIMS[column](kind)
    else:
        with pytest.raises(PollardError) as refused:
            CLAIMS[column](kind)
        assert refused.value.got == reason(kind)


def test_the_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python scripts/weights_page.py"
    lines = [line.strip("| ").split(" | ") for line in page().splitlines() if line.startswith("| ")]
    table = {kind: cells for kind, *cells in lines if len(cells) == len(CLAIMS)}
    assert all({*table[kind]} <= {"works", "refused"} for kind in (*KINDS, *DENSE))


@ties
@pytest.mark.parametrize("criterion", ["exact-obs", "ntk-sap", "m-fac"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_pruned_by_the_slower_criteria_too(kind, criterion):
    is_pruned(kind, criterion)


@pytest.mark.parametrize("kind", KINDS)
def test_snip_keeps_what_the_gradients_of_the_whole_say(kind):
    model = network(kind)
    plan = pollard.prune(model, "snip", 0.3, (X, Y), scoring=Scoring(mode="eval"))
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
            "lazy": nn.LazyConv2d(4, 3),
            "fc": nn.Linear(8, 8),
        }
    )
    plan = pollard.prune(model, "magnitude", 0.5, layers=["fc"])
    assert list(pollard.prune(model, "magnitude", 0.5, layers=lambda *_: True)) == ["fc"]
    assert sum(plan.coverage.left.values()) == 5
    told = {
        "shared": "it shares a parameter with another module",
        "grouped": "groups=2",
        "normed": "its weight is made anew at each call",
        "lazy": "it is lazy and has seen no input yet",
    }
    for name, why in told.items():
        for call in (
            lambda name=name: pollard.prune(model, "magnitude", 0.5, layers=["fc", name]),
            lambda name=name: pollard.plan_from_masks(model, {f"{name}.weight": torch.ones(1, 1)}),
            lambda name=name: pollard.plan_from_zeros(model, layers=name),
            lambda name=name: pollard.sparsify_(model, {name: pollard.Topology.full((1, 1))}),
        ):
            with pytest.raises(NothingMatched, match=f"layer '{name}' of class .*, which stays dense: {why}"):
                call()


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
    with pytest.raises(NothingMatched, match="it has modules of its own"):
        pollard.prune(model, "magnitude", 0.5, layers=["0"])


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
