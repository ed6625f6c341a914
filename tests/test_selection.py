from __future__ import annotations

import pytest
from torch import nn

from pollard.errors import InvalidInput, NothingMatched
from pollard.selection import linear_layers, listed, per_layer, refuse_tied, select, unmatched

MODULES = {name: nn.Linear(2, 2) for name in ("enc.fc1", "enc.fc2", "head")}


def test_linear_layers_are_exactly_those_that_a_replacement_serves():
    class Watched(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    shared = nn.Linear(2, 2)
    model = nn.ModuleDict(
        {"a": shared, "b": shared, "c": Watched(2, 2), "d": nn.LazyLinear(2), "e": nn.Bilinear(2, 2, 2)}
    )
    # A lazy one is among them: it is refused by name, not passed over.
    assert linear_layers(model) == {"a": shared, "d": model["d"]}
    assert list(linear_layers(shared)) == [""]


@pytest.mark.parametrize(
    ("layers", "selected"),
    [
        (None, ["enc.fc1", "enc.fc2", "head"]),
        ("enc.*", ["enc.fc1", "enc.fc2"]),
        (["head", "*1"], ["enc.fc1", "head"]),
        (("head",), ["head"]),
        (lambda name, module: name == "head" and isinstance(module, nn.Linear), ["head"]),
    ],
)
def test_select(layers, selected):
    assert select(MODULES, layers) == selected


@pytest.mark.parametrize("layers", [["head", "fc*"], "Head", [], lambda *_: False])
def test_a_pattern_that_matches_nothing_is_refused(layers):
    with pytest.raises(NothingMatched):
        select(MODULES, layers)


def test_per_layer_choices():
    assert per_layer(0.5, MODULES, 0.0) == dict.fromkeys(MODULES, 0.5)
    assert per_layer({"enc.*": 0.1, "*2": 0.2}, MODULES, 0.0) == {"enc.fc1": 0.1, "enc.fc2": 0.2, "head": 0.0}
    with pytest.raises(NothingMatched, match="'tail'"):
        per_layer({"*": 0.1, "tail": 0.2}, MODULES, 0.0)


def test_the_nearest_names_are_offered_and_all_where_none_is_near():
    assert unmatched("enc.fc3", MODULES).expected == "one of 'enc.fc2', 'enc.fc1'"
    assert unmatched("xyz", MODULES).expected == "one of 'enc.fc1', 'enc.fc2', 'head'"
    assert listed([]) == "none"


def test_tied_biases_are_refused_and_other_layers_are_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].bias = model[0].bias
    refuse_tied(model, ["1"])
    with pytest.raises(InvalidInput, match=r"'2' .* tied: 0\.bias = 2\.bias"):
        refuse_tied(model, ["1", "2"])
