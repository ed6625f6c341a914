"""A recipe is a value: checked, written and read without loss, and named by what it means."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollard.errors import InvalidInput, PatternError
from pollard.recipes import Recipe
from pollard.training import TrainingOptions

RECIPES = st.builds(
    Recipe,
    data=st.sampled_from(["digits", "mnist", '/a "quoted"\\folder']),
    model=st.sampled_from(["lenet-300-100", "mlp-64-20-10"]),
    method=st.sampled_from(["snip", "magnitude", "random", "dense"]),
    density=st.floats(1e-4, 1.0),
    allocation=st.sampled_from(["", "global", "uniform", "er", "erk"]),
    pattern=st.sampled_from(["unstructured", "v2", "v16"]),
    lr=st.floats(1e-6, 10.0),
    nesterov=st.booleans(),
    score_mode=st.sampled_from(["", "eval", "train"]),
    score_at=st.sampled_from([0.0, 0.5, 20.0]),
    weights_at=st.sampled_from([-1.0, 0.0, 20.0]),
    schedule_at=st.floats(0.0, 19.0),
    ablation=st.sampled_from(["", "shuffle", "reinitialise", "invert"]),
    seed=st.integers(0, 2**40),
)


@settings(deadline=None)
@given(RECIPES)
def test_it_survives_every_way_of_writing_it(tmp_path_factory, recipe):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "r.toml").write_text(recipe.to_toml(), "utf-8")
    (folder / "r.json").write_text(json.dumps(recipe.to_dict()), "utf-8")
    copies = [
        Recipe.from_dict(recipe.to_dict()),
        Recipe.read(folder / "r.toml"),
        Recipe.read(folder / "r.json"),
        eval(repr(recipe)),
    ]
    assert copies == [recipe] * 4
    assert {copy.digest for copy in copies} == {recipe.digest}


def test_every_field_is_part_of_the_hash():
    changed = {
        "data": "mnist",
        "model": "mlp-64-10",
        "initialiser": "torch",
        "augment": "flip",
        "method": "magnitude",
        "allocation": "er",
        "pattern": "v2",
        "storage": "masked",
        "optimizer": "adam",
        "precision": "autocast",
        "schedule": "cosine",
        "nesterov": True,
        "decay_all": True,
        "score_mode": "train",
        "score_rounds": 2,
        "weights_at": 1.0,
        "ablation": "shuffle",
        "repair": "isometry",
    }
    moving = {
        "criterion": "magnitude",
        "update_every": 7,
        "drop_fraction": 0.1,
        "update_until": 0.5,
        "start_density": 0.7,
        "density_curve": "linear",
        "method_options": "allocation=uniform",
    }
    late, granet = Recipe(score_at=10.0), Recipe(method="granet")
    digests = {late.digest}
    for entry in fields(Recipe):
        if entry.name in moving:
            digests.add(replace(granet, **{entry.name: moving[entry.name]}).digest)
            continue
        if entry.name == "never_dense":
            digests.add(Recipe(never_dense=True).digest)
            continue
        value = changed.get(entry.name)
        if value is None:
            value = entry.default + 1 if isinstance(entry.default, int) else entry.default / 2 + 0.01
        digests.add(replace(late, **{entry.name: value}).digest)
    assert len(digests) == 1 + len(fields(Recipe))


def test_the_hash_stays_what_it_was():
    # A changed hash orphans every run folder: change it on purpose, together with MEANING.
    assert Recipe().digest == "6210e10f8610"


def test_a_hash_is_of_what_is_meant():
    # Fields that the first recipes did not have, said or left unsaid.
    assert Recipe(score_mode="eval", temperature=1, score_rounds=1, weights_at=0).digest == Recipe().digest
    assert Recipe(precision="float32").digest == Recipe().digest
    assert (
        Recipe(score_at=5, weights_at=5).digest == Recipe(score_at=5).digest != Recipe(score_at=5, weights_at=0).digest
    )
    first = {"method": "random", "density": 0.05, "seed": 3}
    assert Recipe.from_dict(first).digest == Recipe(**first, cycles=1, ablation="", score_at=0).digest


def test_whole_numbers_serve_as_numbers():
    assert Recipe(density=1, lr=1) == Recipe(density=1.0, lr=1.0)
    assert Recipe(density=1).digest == Recipe(density=1.0).digest


def test_recipes_that_differ_only_in_what_to_keep_share_their_dense_twin():
    twins = {
        Recipe().twin(),
        Recipe(density=0.02, pattern="v4").twin(),
        Recipe(method="random", storage="masked").twin(),
        Recipe(score_at=20, weights_at=1, schedule_at=1, cycles=5, ablation="reinitialise", repair="isometry").twin(),
        Recipe(score_per_class=10, score_mode="train", temperature=200, score_rounds=100).twin(),
    }
    assert len(twins) == 1
    [twin] = twins
    assert (twin.method, twin.density) == ("dense", 1.0)
    assert Recipe(seed=1).twin() not in twins
    assert Recipe(precision="bfloat16").twin().precision == "bfloat16"


def test_options_carry_every_field_of_training():
    recipe = Recipe(epochs=3, lr=0.5, beta2=0.9, decay_every=7, seed=5)
    options = recipe.options()
    assert all(getattr(options, entry.name) == getattr(recipe, entry.name) for entry in fields(TrainingOptions))


def test_every_field_has_help():
    described = Recipe.describe()
    assert list(described) == [entry.name for entry in fields(Recipe)]
    assert all(described.values())
    parsed = tomllib.loads(Recipe().to_toml())
    assert parsed == Recipe().to_dict()


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"density": 0.0}, "density"),
        ({"density": 1.5}, "density"),
        ({"density": float("nan")}, "density"),
        ({"density": "0.1"}, "a number"),
        ({"epochs": 2.5}, "a whole number"),
        ({"epochs": True}, "a whole number"),
        ({"lr": 10**400}, "a number"),
        ({"nesterov": 1}, "true or false"),
        ({"method": "snipp"}, "Did you mean 'snip'"),
        ({"method": "rigl", "criterion": "snpi"}, "Did you mean 'snip'"),
        ({"method": "rigl", "density_curve": "cubic"}, "option 'curve' of method rigl"),
        ({"method": "static", "update_every": 10}, "none: it has no options"),
        ({"method": "set", "method_options": "sined=false"}, "signed"),
        ({"method": "set", "method_options": "signed=perhaps"}, "a value like true"),
        ({"method": "gmp", "density_curve": "cubical"}, "schedule 'cubical'"),
        ({"update_every": 100}, "a method that moves it"),
        ({"model": "lenet"}, "lenet-300-100"),
        ({"model": "mlp-0-10"}, "mlp"),
        ({"initialiser": "orthogonal"}, "lecun"),
        ({"allocation": "erks"}, "erk"),
        ({"storage": "csr"}, "compressed"),
        ({"validation": 1.0}, "validation"),
        ({"score_batch": -1}, "score_batch"),
        ({"data": ""}, "data"),
        ({"lr": -1.0}, "lr"),
        ({"score_per_class": -1}, "score_per_class"),
        ({"score_per_class": 10, "score_batch": 100}, "one of them"),
        ({"score_mode": "evl"}, "Did you mean 'eval'"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"score_rounds": -1}, "score_rounds"),
        ({"score_at": 21.0}, "an epoch of training, 0 to 20"),
        ({"score_at": float("nan")}, "score_at"),
        ({"weights_at": -0.5}, "weights_at"),
        ({"schedule_at": 20}, "some left to train"),
        ({"cycles": 0}, "cycles"),
        ({"cycles": 2}, "Set score_at=20 to prune after training"),
        ({"cycles": 2, "score_at": 2, "schedule_at": 2}, "schedule_at before score_at"),
        ({"ablation": "shufle"}, "Did you mean 'shuffle'"),
        ({"repair": "isometric"}, "Did you mean 'isometry'"),
    ],
)
def test_what_cannot_be_run_is_refused(wrong, told):
    with pytest.raises(InvalidInput, match=told):
        Recipe(**wrong)


def test_a_pattern_is_checked_by_its_own_rules():
    with pytest.raises(PatternError):
        Recipe(pattern="v3")


def test_an_unknown_field_is_met_with_near_ones():
    with pytest.raises(InvalidInput, match="Did you mean density"):
        Recipe.from_dict({"densty": 0.1})
    with pytest.raises(InvalidInput, match=r"Recipe\.describe"):
        Recipe.from_dict({"zzz": 1})


@pytest.mark.parametrize("name, text", [("a.toml", "density = "), ("a.json", "{"), ("b.json", "[1]"), ("c.toml", None)])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInput):
        Recipe.read(tmp_path / name)
