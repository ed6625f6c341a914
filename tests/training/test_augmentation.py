"""Images are shifted and mirrored as drawn, and what is drawn depends on seed and step alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.training import Examples, TrainingOptions, processes, train
from pollard.training.augmentation import CHANGES, PAD, augmented, changes_of, draw, mirrored, shifted


def images(count=12, height=6, width=5, channels=3):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_a_shifted_image_is_a_window_of_its_frame():
    x, drawn = images(), torch.randint(0, 2 * PAD + 1, (12, 2), generator=torch.Generator().manual_seed(1))
    framed = functional.pad(x, (PAD,) * 4)
    expected = [
        each[:, down : down + 6, right : right + 5] for each, (down, right) in zip(framed, drawn.tolist(), strict=True)
    ]
    assert torch.equal(shifted(x, drawn), torch.stack(expected))
    assert torch.equal(shifted(x, torch.full((12, 2), PAD)), x)


def test_a_mirrored_image_is_its_mirror_image():
    x, drawn = images(), (torch.arange(12) % 3 == 0).long()[:, None]
    expected = [each.flip(2) if chosen else each for each, chosen in zip(x, drawn.flatten().tolist(), strict=True)]
    assert torch.equal(mirrored(x, drawn), torch.stack(expected))


def test_what_is_drawn_covers_all_places_evenly():
    places, sides = draw("crop,flip", 20_000, seed=3, step=5)
    for axis in places.unbind(1):
        share = axis.bincount(minlength=9) / 20_000
        assert share.sub(1 / 9).abs().max() < 0.01
    assert abs(float(sides.double().mean()) - 0.5) < 0.02
    assert not torch.equal(places[:, 0], places[:, 1])


def test_what_is_drawn_depends_on_seed_and_step_alone():
    first = draw("crop,flip", 50, seed=3, step=5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert all(map(torch.equal, first, draw("crop,flip", 50, seed=3, step=5)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], draw("crop,flip", 50, seed=3, step=6)[0])
    assert not torch.equal(first[0], draw("crop,flip", 50, seed=4, step=5)[0])


def test_images_keep_their_kind_and_what_was_given():
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        x = images().abs().mul(9).to(dtype)
        before = x.clone()
        for augment in ("crop", "flip", "crop,flip", "flip, crop"):
            found = augmented(augment, x, draw(augment, len(x), seed=0, step=0))
            assert (found.shape, found.dtype) == (x.shape, dtype)
        assert torch.equal(x, before)


def test_parts_of_a_batch_are_changed_as_the_whole_is(monkeypatch):
    x = images(11)
    whole = augmented("crop,flip", x, draw("crop,flip", 11, seed=0, step=2))
    monkeypatch.setattr(processes, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        own, _ = processes.part_of(torch.arange(11))
        drawn = [processes.part_of(each)[0] for each in draw("crop,flip", 11, seed=0, step=2)]
        assert torch.equal(augmented("crop,flip", x[own], drawn), whole[own])


def test_nothing_but_images_is_changed():
    assert augmented("", torch.ones(3, 4), draw("", 3, 0, 0)).shape == (3, 4)
    with pytest.raises(InvalidInput, match="channels, height, width"):
        augmented("flip", torch.ones(3, 4), draw("flip", 3, 0, 0))
    for wrong in ("turn", "crop,crop", "crop,"):
        with pytest.raises(InvalidInput, match="some of " + ", ".join(CHANGES)):
            changes_of(wrong)
        with pytest.raises(InvalidInput):
            TrainingOptions(augment=wrong)


def test_training_sees_the_changed_images():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(90, 2)

        def forward(self, x):
            if self.training:
                seen.append(x)
            return self.head(x.flatten(1))

    x = images(10)
    examples = Examples(x, torch.arange(10) % 2)
    options = TrainingOptions(epochs=2, batch_size=4, augment="crop,flip", lr=0.01, seed=5)
    train(Watching(), examples, {"test": examples}, options)
    assert [len(each) for each in seen] == [4, 4, 2] * 2
    framed = functional.pad(x, (PAD,) * 4)
    windows = framed.unfold(2, 6, 1).unfold(3, 5, 1).movedim(1, 3).flatten(0, 2)
    possible = {tuple(each.flatten().tolist()) for each in torch.cat([windows, windows.flip(3)])}
    assert all(tuple(each.flatten().tolist()) in possible for each in torch.cat(seen))
    assert not torch.equal(torch.cat(seen[:3]).sort(0).values, torch.cat(seen[3:]).sort(0).values)
