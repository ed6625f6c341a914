"""Chunks change nothing but memory, whatever mean the loss is; half precision is measured in single; parts without a gradient are zero."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import BATCH, generator, lenet, noisy, same
from pollard.errors import InvalidInput, LayerCollapse, ScoresTie
from pollard.nn import sparsify_
from pollard.pruning import CRITERIA, MEASUREMENTS, Network, prune
from pollard.pruning.scoring import Scoring
from pollard.pruning.slopes import is_plain_mean

X, Y = BATCH[0].double(), BATCH[1]
WEIGHTS = torch.tensor([1.0, 5.0, 0.2, 2.0], dtype=torch.float64)
IGNORED = torch.where(torch.arange(40) % 3 == 0, -100, Y)


def contrast(outputs, targets):
    """Every sample against all others: no mean over samples at all."""
    scaled = functional.normalize(outputs, dim=1)
    return functional.cross_entropy(scaled @ scaled.T, torch.arange(len(outputs)))


LOSSES = {
    "class weights": (lambda out, t: functional.cross_entropy(out, t, weight=WEIGHTS), Y),
    "a weighted module": (nn.CrossEntropyLoss(weight=WEIGHTS), Y),
    "ignored targets": (None, IGNORED),
    "an ignored index": (nn.CrossEntropyLoss(ignore_index=2), Y),
    "a sum": (lambda out, t: functional.cross_entropy(out, t, reduction="sum"), Y),
    "all against all": (contrast, Y),
}
NEEDS = ("gradient", "hessian_gradient", "hessian_diagonal")


def measured(need, loss_fn, targets, chunk_size, model=None, mode="eval"):
    torch.manual_seed(5)
    network = Network(
        model or lenet().double(),
        ["0", "4"],
        (X, targets),
        Scoring(loss_fn, mode, chunk_size=chunk_size),
        generator=generator(),
    )
    with network.undisturbed():
        return MEASUREMENTS[need](network)


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk_size", [1, 7])
def test_a_loss_that_is_no_plain_mean_is_measured_the_same_in_chunks(loss, need, chunk_size):
    whole, cut = (measured(need, *LOSSES[loss], size) for size in (None, chunk_size))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("need", ["sample_gradients", "fisher_diagonal", "gauss_newton_diagonal"])
@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"all against all"}))
def test_a_samples_own_loss_is_its_part_of_the_mean(loss, need):
    whole, cut = (measured(need, *LOSSES[loss], size) for size in (None, 7))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-9, atol=1e-12)
    if need == "sample_gradients":
        mean = measured("gradient", *LOSSES[loss], None)
        torch.testing.assert_close(cut["0"].mean(0), mean["0"], rtol=1e-9, atol=1e-12)


def test_dropout_is_the_same_in_both_passes_of_a_chunk():
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(), nn.Identity(), nn.Linear(24, 4)).double()
    plain, other = (
        measured("gradient", loss_fn, Y, 7, model, "train")
        for loss_fn in (None, lambda out, t: functional.cross_entropy(out + 0, t))
    )
    torch.testing.assert_close(other["0"], plain["0"], rtol=1e-9, atol=1e-12)


def test_which_losses_are_known_to_be_plain_means():
    plain = [
        None,
        functional.mse_loss,
        nn.MSELoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        functional.cross_entropy,
    ]
    other = [
        nn.MSELoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.ones(4)),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.BCEWithLogitsLoss(weight=torch.ones(40, 1)),
        lambda out, t: out.mean(),
    ]
    assert [is_plain_mean(loss, Y) for loss in plain + other] == [True] * 5 + [False] * 5
    assert not is_plain_mean(None, IGNORED)


def aligned(outputs, targets):
    """Of a sequence to labels, which torch differentiates only once."""
    sequence = outputs.log_softmax(-1).unsqueeze(0).expand(6, -1, -1)
    lengths = torch.full((len(outputs),), 6), torch.ones(len(outputs), dtype=torch.int64)
    return functional.ctc_loss(sequence, targets[:, None].clamp(min=1), *lengths)


class Pooled(nn.Module):
    """Features pooled in threes, by an operation that torch differentiates only once."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(X.shape[1], 12), nn.Linear(4, 4)

    def forward(self, x):
        features = self.first(x).tanh().T.contiguous()
        return self.last(torch.segment_reduce(features, "mean", lengths=torch.full((4,), 3)).T)


@pytest.mark.parametrize("criterion", ["grasp", "grasp-abs", "hutchinson", "prospr"])
@pytest.mark.parametrize("what", ["loss", "model"])
def test_what_can_be_differentiated_only_once_is_told(criterion, what):
    model, loss = (lenet(), aligned) if what == "loss" else (Pooled(), None)
    batch = [(X[:10], Y[:10])] * 4
    with pytest.raises(InvalidInput, match=r"differentiated only once.*_backward.*loss_fn=.*snip"):
        prune(model.double(), criterion, 0.5, batch, loss)
    assert prune(model.double(), "snip", 0.5, batch, loss).density == 0.5


class Loud(torch.autograd.Function):
    """Itself; its second derivative fails in a way of its own."""

    @staticmethod
    def forward(ctx, outputs, again):
        ctx.again = again
        return outputs.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.again:
            raise RuntimeError("out of order")
        return Loud.apply(grad, True), None


def test_other_errors_of_a_second_derivative_are_their_own():
    with pytest.raises(RuntimeError, match="out of order"):
        prune(lenet().double(), "grasp", 0.5, (X, Y), lambda o, t: functional.cross_entropy(Loud.apply(o, False), t))


class Mixture(nn.Module):
    """Two parts, of which each sample takes one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.other, self.last = (
            nn.Linear(12, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        hidden, made = self.first(x).relu(), x.new_zeros(len(x), 8)
        chosen = x[:, 0] > 0
        for part, rows in ((self.one, chosen), (self.other, ~chosen)):
            if rows.any():
                made[rows] = part(hidden[rows])
        return self.last(made.relu())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_part_that_some_chunk_does_not_reach_counts_as_zero_there(criterion):
    # Sorted, so that most chunks reach one part only.
    order = X[:, 0].argsort()
    options = {"rounds": min(2, CRITERIA[criterion].rounds), "allocation": "uniform"}
    cut_to = Scoring(chunk_size=None if criterion == "prospr" else 5)  # which learns from every batch in turn
    model = Mixture().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScoresTie)  # a flow without data goes one way only
        whole = prune(model, criterion, 0.5, (X[order], Y[order]), generator=generator(), **options)
        cut = prune(model, criterion, 0.5, (X[order], Y[order]), generator=generator(), scoring=cut_to, **options)
    assert same(whole, cut)


def test_samples_that_lead_by_chance_are_not_taken_for_others():
    # The first two go to one part: from these alone, every layer is given one thing a sample.
    order = X[:, 0].argsort(descending=True)
    network = Network(Mixture().double(), ["first", "one", "other", "last"], (X[order], Y[order]))
    with network.undisturbed():
        found = MEASUREMENTS["sample_gradients"](network)
    for sample in (0, 20, 39):
        model = Mixture().double()
        functional.cross_entropy(model(X[order][[sample]]), Y[order][[sample]]).backward()
        for name, gradients in found.items():
            own = model.get_submodule(name).weight.grad
            torch.testing.assert_close(gradients[sample], torch.zeros_like(gradients[0]) if own is None else own)


@pytest.mark.parametrize("criterion", ["snip", "taylor", "grasp", "fisher", "obd", "wanda", "woodfisher", "movement"])
def test_a_part_that_no_sample_reaches_scores_zero_and_is_told(criterion):
    only = X[:, 0] > 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plan = prune(Mixture().double(), criterion, 0.3, (X[only], Y[only]), allocation="uniform")
    assert any("does not depend on layer 'other': scores there are 0" in str(each.message) for each in told)
    assert {each.category for each in told} == {ScoresTie}
    assert plan.nnz == round(0.3 * plan.weights)


def test_a_layer_that_is_not_used_is_told_and_goes_first():
    model = lenet()
    model.register_module("spare", nn.Linear(3, 3))
    model.forward = lambda x: model[4](model[2](model[0](x)))
    with pytest.warns(ScoresTie, match="'spare'"), pytest.warns(LayerCollapse):
        plan = prune(model, "snip", 0.1, BATCH)
    assert plan["spare"].nnz == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_is_scored_as_its_weights_in_single(criterion, dtype):
    half = noisy().to(dtype)
    half[4].weight.data.mul_(1e-4)  # squares of these vanish in float16
    single = noisy()
    single.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in half.state_dict().items()}
    )
    x = BATCH[0].to(dtype)
    options = {"rounds": min(3, CRITERIA[criterion].rounds), "allocation": "uniform"}
    before = {name: value.clone() for name, value in half.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScoresTie)
        found = prune(half, criterion, 0.3, (x, Y), generator=generator(), **options)
        expected = prune(single, criterion, 0.3, (x.float(), Y), generator=generator(), **options)
    assert same(found, expected)
    assert all(
        value.equal(before[name]) and value.dtype == before[name].dtype for name, value in half.state_dict().items()
    )
    assert sparsify_(half, found)[0].values.dtype == dtype


@pytest.mark.parametrize("criterion", ["fisher", "obd", "woodfisher", "wanda", "snip"])
def test_what_follows_a_layer_may_write_in_place(criterion):
    plain, placed = lenet(), lenet()
    placed[1] = placed[3] = nn.ReLU(inplace=True)
    assert same(prune(plain, criterion, 0.3, BATCH), prune(placed, criterion, 0.3, BATCH))
    assert same(prune(plain, "wanda", 0.3, BATCH), prune(placed, "wanda", 0.3, BATCH))


def test_a_layer_may_be_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(12, 4)

        def forward(self, x):
            return self.fc(input=x)

    for criterion in ("wanda", "fisher"):
        assert prune(Keyword(), criterion, 0.5, BATCH).nnz == 24
