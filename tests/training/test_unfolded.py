"""What is unfolded of images for whoever watches a convolution is not kept, but made again."""

import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import pollard
from pollard.composites import convolution
from pollard.composites.convolution import MadeAgain
from pollard.errors import InvalidInput


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 8 * 8, 3)
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 2, 10, 10, generator=generator), torch.arange(6) % 3


def train(storage, steps=6, method=pollard.rigl):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = method(model, optimizer, density=0.3, steps=8, every=2, storage=storage)
    x, y = batch()
    for _ in range(steps):
        sparse.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sparse.step()
    return model, sparse


def test_growth_is_the_same_in_both_storages():
    (compressed, _), (masked, _) = train("compressed"), train("masked")
    for index in (0, 2):
        assert compressed[index].linear.topology.same_as(masked[index].linear.topology)
        values = masked[index].linear.weight.detach().flatten()[compressed[index].linear.topology.weight_positions()]
        torch.testing.assert_close(compressed[index].linear.values.detach(), values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_nothing_unfolded_outlives_its_product(storage, monkeypatch):
    model, sparse = train(storage, steps=1)
    made, unfold = [], convolution._columns

    def watched(*args, **named):
        columns = unfold(*args, **named)
        made.append(weakref.ref(columns))
        return columns

    monkeypatch.setattr(convolution, "_columns", watched)
    monkeypatch.setattr(convolution, "BLOCK", 1)  # each sample by itself
    x, y = batch()
    loss = nn.functional.cross_entropy(model(x), y)
    gc.collect()
    assert len(made) == 12
    assert not any(each() is not None for each in made)
    loss.backward()
    gc.collect()
    assert not any(each() is not None for each in made)
    passes = [each for weight in sparse.weights.values() for each in weight.passes.seen]
    assert sum(isinstance(each.source, MadeAgain) for each in passes) == 12
    sparse.step()


def test_images_that_are_written_over_before_growth_are_remembered():
    grown = []
    for spoil in (False, True):
        model, sparse = train("compressed", steps=1)
        x, y = batch()
        nn.functional.cross_entropy(model(x), y).backward()
        if spoil:
            x.zero_()
        sparse.step()
        grown.append(model[0].linear.topology)
    assert grown[0].same_as(grown[1])


def test_a_state_in_the_middle_of_a_step_holds_what_was_seen():
    model, sparse = train("compressed", steps=1)
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    again = train("compressed", steps=1)[1]
    again.load_state_dict(pickle.loads(pickle.dumps(sparse.state_dict())))
    for name, weight in sparse.weights.items():
        loaded = again.weights[name].passes
        rows = weight.layer.out_features
        torch.testing.assert_close(loaded.rows(0, rows), weight.passes.rows(0, rows))
        assert weight.passes.seen


def test_numbers_that_are_not_finite_are_noticed():
    model, sparse = train("compressed", steps=1)
    x, y = batch()
    x[0, 0, 0, 0] = torch.nan
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(InvalidInput, match="not finite"):
        sparse.step()
