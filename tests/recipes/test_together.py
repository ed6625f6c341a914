"""A recipe that two processes run: one folder, written by the first, and what one process would have come to."""

from __future__ import annotations

import pytest
import torch

import joint_training as joint
from pollard.errors import StoreError
from pollard.formats.store import load_tensors
from pollard.recipes import Recipe, run
from pollard.recipes.folder import MODEL, locked_folder
from ranks import two_ranks

QUICK = {"epochs": 2, "model": "mlp-64-24-10", "density": 0.25}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with two_ranks(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(method="snip", **QUICK),
        Recipe(method="set", **QUICK),
        Recipe(method="magnitude", score_at=1, weights_at=1, cycles=2, **QUICK),
        Recipe(method="set", precision="autocast", **QUICK),
        # Without batch norm, whose statistics are those of each rank's part.
        Recipe(method="snip", augment="crop,flip", **(QUICK | {"model": "mixer-small-x0.03125"})),
    ],
    ids=lambda recipe: f"{recipe.method} of {recipe.model} in {recipe.precision}",
)
def test_two_ranks_come_to_what_one_does(pair, tmp_path, recipe):
    alone = run(recipe, tmp_path / "alone", progress=False)
    (losses, first), (others, second) = pair.ask(joint.ran, recipe, tmp_path / "together")
    assert losses == others == pytest.approx((alone.train_loss, alone.test_loss), rel=1e-3)
    assert first == second == 2
    ours, theirs = (load_tensors(tmp_path / out / recipe.digest / MODEL)[0] for out in ("together", "alone"))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-2, atol=1e-3)
    assert [again for again, _ in pair.ask(joint.ran, recipe, tmp_path / "together")] == [losses] * 2


def test_two_ranks_round_alike_in_bfloat16(pair, tmp_path):
    recipe = Recipe(method="set", precision="bfloat16", **QUICK)
    alone = run(recipe, tmp_path / "alone", progress=False)
    # Methods hold that ranks keep the same weights, and raise where they do not.
    (losses, first), (others, second) = pair.ask(joint.ran, recipe, tmp_path / "together")
    assert losses == others == pytest.approx((alone.train_loss, alone.test_loss), rel=0.05)
    assert first == second == 2


def test_a_folder_in_use_stops_both(pair, tmp_path):
    recipe = Recipe(**QUICK)
    with locked_folder(recipe, tmp_path):
        for error in pair.ask(joint.ran, recipe, tmp_path):
            assert isinstance(error, StoreError)
            assert "in use by another process" in str(error)
