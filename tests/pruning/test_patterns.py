"""Every criterion keeps exactly what a pattern allows: blocks as wholes, N of every M."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from networks import BATCH, generator, same
from pollard.errors import InvalidInput, PatternError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.nn.surgery import sparsify_
from pollard.pruning import CRITERIA, dense_decision, prune
from pollard.pruning.budget import Layer
from pollard.pruning.plan import Plan
from pollard.pruning.scoring import Scoring

PATTERNS = {"b4x2": 0.3, "b16x2": 0.4, "b2x4": 0.2, "2:4": None, "1:4": None, "1:2": None}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16))


def rounds_of(criterion: str) -> int:
    return min(CRITERIA[criterion].rounds, 4)


@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie", "ignore::pollard.errors.LayerCollapse")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_is_exact(criterion, pattern):
    density = PATTERNS[pattern]
    plan = prune(
        network(), criterion, density, BATCH, pattern=pattern, generator=generator(), rounds=rounds_of(criterion)
    )
    for topology in plan.values():
        # Validated anew, as if the arrays were anybody's.
        assert str(topology.pattern) == pattern
        assert Topology.from_mask(topology.mask(), pattern).same_as(topology)
    size = plan["0"].pattern.size
    kept = plan["0"].pattern.density if density is None else density
    assert plan.nnz == size * round(kept * plan.weights / size)
    x = BATCH[0]
    compressed, masked = (sparsify_(network(), plan, storage=storage)(x) for storage in ("compressed", "masked"))
    torch.testing.assert_close(compressed, masked, rtol=1e-4, atol=1e-5)


def kept_by_hand(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], m):
            run = scores[row, start : start + m].tolist()
            for place in sorted(range(m), key=lambda at: (-run[at], at))[:n]:
                mask[row, start + place] = True
    return mask


@pytest.mark.parametrize(
    ("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:4", 3, 4), ("1:2", 1, 2), ("4:8", 4, 8)]
)
def test_the_largest_of_every_m_are_kept(pattern, n, m):
    model = nn.Sequential(nn.Linear(16, 8))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 16).mul(4).round().add(0.5))  # with ties: of equal ones the first
    plan = prune(model, "magnitude", pattern=pattern)
    assert torch.equal(plan.mask("0"), kept_by_hand(model[0].weight.detach().abs(), n, m))


def test_snip_keeps_the_blocks_with_the_largest_sums():
    model = network()
    plan = prune(model, "snip", 0.25, BATCH, pattern="b4x2", scoring=Scoring(mode="eval"))
    nn.functional.cross_entropy(model.eval()(BATCH[0]), BATCH[1]).backward()
    blocks = {
        name: (model.get_submodule(name).weight * model.get_submodule(name).weight.grad).abs().detach() for name in plan
    }
    sums = {name: nn.functional.avg_pool2d(score[None], (4, 2))[0] * 8 for name, score in blocks.items()}
    kept = {name: nn.functional.max_pool2d(plan.mask(name).float()[None], (4, 2))[0] > 0 for name in plan}
    chosen = torch.cat([sums[name][kept[name]] for name in plan])
    dropped = torch.cat([sums[name][~kept[name]] for name in plan])
    assert chosen.min() >= dropped.max() * (1 - 1e-5)


def test_two_patterns_share_a_budget():
    plan = prune(network(), "snip", 0.4, BATCH, pattern={"*": "b2x2", "2": "1:4"})
    assert plan["2"].density == 0.25
    assert plan.density == pytest.approx(0.4, abs=1e-3)
    assert {str(topology.pattern) for topology in plan.values()} == {"b2x2", "1:4"}
    with pytest.raises(InvalidInput, match=r"density 0\.1.*Ask for a density in \[0\.5, 0\.5\]"):
        prune(network(), "magnitude", 0.1, pattern="2:4")
    with pytest.raises(PatternError, match=r"pattern 2:4.*0\.5, what it keeps of every layer"):
        Layer((8, 8), Topology.random((8, 8), 0.5, "2:4").pattern, max_density=0.4)


def test_on_the_way_to_n_of_m_more_of_every_m_are_kept(monkeypatch):
    seen = []

    def watched(name, layer, count):
        seen.append((str(layer.pattern), count))
        return chosen(name, layer, count)

    chosen = dense_decision._topology
    monkeypatch.setattr(dense_decision, "_topology", watched)
    model = nn.Sequential(nn.Linear(64, 64))
    plan = prune(model, "magnitude", pattern="1:8", rounds=4)
    assert seen == [("5:8", 5 * 512), ("3:8", 3 * 512), ("2:8", 2 * 512), ("1:8", 512)]
    # Round by round, the smallest of those left go: as at once.
    assert same(plan, prune(model, "magnitude", pattern="1:8"))


def test_a_plan_of_n_of_m_goes_no_further():
    model = network()
    first = prune(model, "magnitude", pattern="2:4")
    assert same(prune(model, "snip", 0.5, BATCH, pattern="2:4", within=first), first)
    free = prune(model, "magnitude", 0.6)
    with pytest.raises(InvalidInput, match="within="):
        prune(model, "magnitude", pattern="2:4", within=free)


def test_what_reconstructs_keeps_least_squares_weights_on_blocks():
    draw = generator()
    x = torch.randn(200, 16, generator=draw)
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    for pattern, density in (("b2x4", 0.5), ("2:4", None)):
        losses = {}
        for criterion in ("magnitude", "sparsegpt", "exact-obs"):
            plan = prune(model, criterion, density, (x, torch.zeros(200, dtype=torch.int64)), pattern=pattern)
            sparse = sparsify_(nn.Sequential(nn.Linear(16, 8, bias=False)), _valued(plan, model))
            losses[criterion] = float((sparse(x) - model(x)).detach().square().mean())
        assert losses["exact-obs"] <= losses["sparsegpt"] <= losses["magnitude"]


def _valued(plan: Plan, model: nn.Module) -> Plan:
    own = {name: SparseMatrix.from_dense(model.get_submodule(name).weight, plan[name]).values for name in plan}
    return replace(plan, updated={**own, **plan.updated})
