"""A batch that is one dict, of which the model takes its loss itself, as the models of transformers do."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.pruning import measure_aims, prune
from pollard.pruning.scoring import Scoring

with warnings.catch_warnings():
    # What it says while it is imported is of others.
    warnings.simplefilter("ignore")
    from transformers import BatchEncoding, BertConfig, BertForMaskedLM, BertForSequenceClassification

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "initializer_range": 0.3,
}
LAYERS = "*.layer.*"


def bert(kind=BertForSequenceClassification):
    torch.manual_seed(0)
    return kind(BertConfig(**SIZES, num_labels=3)).eval()


def batch(samples=6):
    made = torch.Generator().manual_seed(1)
    tokens = torch.randint(50, (samples, 8), generator=made)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.randint(3, (samples,), generator=made),
    }


def as_pair(whole):
    inputs = dict(whole)
    return inputs, inputs.pop("labels")


def logits_loss(outputs, labels):
    return functional.cross_entropy(outputs.logits, labels)


def same(one, other):
    return list(one) == list(other) and all(one[name].same_as(other[name]) for name in one)


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("snip", {}),
        ("snip", {"scoring": Scoring(chunk_size=2)}),
        ("grasp", {"scoring": Scoring(temperature=1)}),
        ("fisher", {}),
        ("wanda", {}),
        ("magnitude", {}),
    ],
)
def test_the_models_own_loss_gives_the_plan_of_the_pair(criterion, options):
    model, whole = bert(), batch()
    own = prune(model, criterion, 0.3, whole, layers=LAYERS, **options)
    pair = prune(model, criterion, 0.3, as_pair(whole), logits_loss, layers=LAYERS, **options)
    assert same(own, pair)


def test_an_iterable_of_what_a_tokenizer_gives():
    model, whole = bert(), batch()
    halves = [{name: part[cut] for name, part in whole.items()} for cut in (slice(0, 3), slice(3, 6))]
    given = [BatchEncoding(half) for half in halves]
    assert same(prune(model, "snip", 0.3, given, layers=LAYERS), prune(model, "snip", 0.3, whole, layers=LAYERS))
    assert same(prune(model, "snip", 0.3, iter(given), layers=LAYERS), prune(model, "snip", 0.3, whole, layers=LAYERS))


def test_a_loss_of_ones_own_gets_the_outputs_and_the_whole_dict():
    model, whole = bert(), batch()
    named = prune(model, "snip", 0.3, whole, lambda outputs, told: logits_loss(outputs, told["labels"]), layers=LAYERS)
    assert same(named, prune(model, "snip", 0.3, whole, layers=LAYERS))


def test_labels_that_are_passed_over():
    # The mean is over the tokens that count: not the mean of the samples' means, so it is not cut into chunks.
    model, whole = bert(BertForMaskedLM), batch()
    whole["labels"] = torch.where(torch.arange(48).view(6, 8) % 7 < 3, whole["input_ids"], -100)

    def loss(outputs, labels):
        return functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    own = prune(model, "snip", 0.3, whole, layers=LAYERS)
    assert same(own, prune(model, "snip", 0.3, as_pair(whole), loss, layers=LAYERS))
    with pytest.raises(InvalidInput, match="Leave chunk_size= out"):
        prune(model, "snip", 0.3, whole, layers=LAYERS, scoring=Scoring(chunk_size=2))


def test_what_wants_more_than_a_loss_says_so():
    model, whole = bert(), batch()
    with pytest.raises(InvalidInput, match=r"temperature=200.*Pass temperature=1"):
        prune(model, "grasp", 0.3, whole, layers=LAYERS)
    with pytest.raises(
        InvalidInput, match=r"a batch that is a dict, for the curvature.*Pass batch=\(inputs, targets\)"
    ):
        prune(model, "obd", 0.3, whole, layers=LAYERS)
    plan = prune(model, "snip", 0.3, whole, layers=LAYERS)
    with pytest.raises(InvalidInput, match="aims that look at the outputs"):
        measure_aims(model, plan, whole)
    del whole["labels"]
    with pytest.raises(InvalidInput, match=r"without a loss, for a batch that is a dict.*Put labels into the batch"):
        prune(model, "snip", 0.3, whole, layers=LAYERS)
    # Who looks at inputs alone needs no labels.
    assert prune(model, "wanda", 0.3, whole, layers=LAYERS).density == pytest.approx(0.3, abs=0.01)


def test_any_model_that_gives_its_loss():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 4)

        def forward(self, x, y):
            return {"loss": functional.mse_loss(self.body(x), y)}

    model, x, y = Own(), torch.randn(5, 6), torch.randn(5, 4)
    assert same(
        prune(model, "snip", 0.5, {"x": x, "y": y}),
        prune(model, "snip", 0.5, ((x, y), y), lambda outputs, _: outputs["loss"]),
    )
