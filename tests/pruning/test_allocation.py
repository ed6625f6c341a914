from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern
from pollard.pruning.allocation import ALLOCATIONS, allocation_name, er, erk, global_, owl, reads, uniform, whole_grains
from pollard.pruning.budget import Layer

LENET_300_100 = [(300, 784), (100, 300), (10, 100)]
LENET_5 = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
MLP = [(1024, 3072), (1024, 1024), (10, 1024)]


def described(shapes) -> dict[str, Layer]:
    return {str(i): Layer(shape) for i, shape in enumerate(shapes)}


@st.composite
def networks(draw, bounds=True, mixed=True):
    """Layers of one or several patterns, with scores full of ties, and bounds."""
    rows = st.sampled_from([1, 2, 4])
    shared = draw(rows)
    layers = {}
    for index in range(draw(st.integers(1, 4))):
        pattern = Pattern(draw(rows) if mixed else shared)
        shape = (pattern.rows * draw(st.integers(1, 6)), draw(st.integers(1, 12)))
        grains = shape[0] * shape[1] // pattern.rows
        limits = st.tuples(st.integers(0, grains), st.integers(0, grains))
        low, high = sorted(draw(limits)) if bounds and draw(st.booleans()) else (0, grains)
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        scores = torch.randint(0, 6, (grains,), generator=generator).float()
        layers[str(index)] = Layer(shape, pattern, low / grains, high / grains, scores)
    return layers


def asked(layers, density) -> int:
    unit = min(layer.pattern.rows for layer in layers.values())
    return unit * round(density * sum(layer.weights for layer in layers.values()) / unit)


def weights(layers, counts) -> int:
    return sum(counts[name] * layer.pattern.rows for name, layer in layers.items())


@pytest.mark.parametrize(
    ("shapes", "density", "expected"),
    [
        (LENET_300_100, 0.20, [0.16224, 0.46936, 1]),
        (LENET_300_100, 0.10, [0.07957, 0.23019, 1]),
        (LENET_300_100, 0.05, [0.03848, 0.11133, 0.91851]),
        (LENET_300_100, 0.02, [0.01539, 0.04453, 0.36740]),
        (LENET_300_100, 0.01, [0.00770, 0.02227, 0.18370]),
        (LENET_5, 0.10, [1, 0.08707, 0.08843, 1]),
        (LENET_5, 0.05, [0.72612, 0.03748, 0.03806, 1]),
        (LENET_5, 0.02, [0.27789, 0.01434, 0.01457, 0.45717]),
        (LENET_5, 0.01, [0.13894, 0.00717, 0.00728, 0.22858]),
        (MLP, 0.05, [0.04238, 0.06357, 1]),
    ],
)
def test_erk_check_values(shapes, density, expected):
    assert list(erk(described(shapes), density).values()) == pytest.approx(expected, abs=5.01e-6)


def erk_as_published(shapes, density) -> list[float]:
    """Layers whose density would pass 1 become dense, the densest first, until the scale of the others is right."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        kept = density * sum(sizes[i] for i in rest) - (1 - density) * sum(sizes[i] for i in dense)
        scale = kept / sum(raw[i] * sizes[i] for i in rest) if rest else 0.0
        over = [i for i in rest if raw[i] * scale > 1]
        if not over:
            return [1.0 if i in dense else raw[i] * scale for i in range(len(shapes))]
        dense |= {i for i in over if raw[i] == max(raw[j] for j in over)}


@given(
    st.lists(
        st.one_of(
            st.tuples(*[st.integers(1, 300)] * 2),
            st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5), st.integers(1, 5)),
        ),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.001, 0.999),
)
def test_erk_is_the_published_algorithm(shapes, density):
    assert list(erk(described(shapes), density).values()) == pytest.approx(erk_as_published(shapes, density), rel=1e-9)


def test_er_ignores_kernels_and_equals_erk_for_linear_layers():
    assert er(described(LENET_300_100), 0.07) == pytest.approx(erk(described(LENET_300_100), 0.07))
    flat = er(described([(50, 20, 5, 5), (500, 800)]), 0.05)
    assert flat["0"] / flat["1"] == pytest.approx((70 / 1000) / (1300 / 400_000))


def test_uniform_is_uniform():
    assert set(uniform(described(LENET_300_100), 0.05).values()) == {0.05}


@given(networks(bounds=False), st.sampled_from(sorted(ALLOCATIONS)))
def test_density_one_keeps_everything(layers, allocation):
    counts = whole_grains(layers, ALLOCATIONS[allocation](layers, 1.0), 1.0)
    assert counts == {name: layer.grains for name, layer in layers.items()}


@given(networks(mixed=False), st.floats(0.01, 1), st.sampled_from(sorted(ALLOCATIONS)))
def test_counts_are_exact_and_within_bounds(layers, density, allocation):
    assume(feasible(layers, density))
    counts = whole_grains(layers, ALLOCATIONS[allocation](layers, density), density)
    assert weights(layers, counts) == asked(layers, density)
    assert all(layer.least <= counts[name] <= layer.most for name, layer in layers.items())


@given(networks(), st.floats(0.01, 1), st.sampled_from(sorted(ALLOCATIONS)))
def test_counts_of_mixed_patterns_are_exact_where_the_finest_layers_have_room(layers, density, allocation):
    assume(feasible(layers, density))
    counts = whole_grains(layers, ALLOCATIONS[allocation](layers, density), density)
    short = asked(layers, density) - weights(layers, counts)
    room = [layer.pattern.rows for name, layer in layers.items() if counts[name] < layer.most]
    assert 0 <= short < min(room, default=1)
    assert all(layer.least <= counts[name] <= layer.most for name, layer in layers.items())


@given(networks(bounds=False, mixed=False), st.floats(0.01, 1), st.sampled_from(["uniform", "er", "erk"]))
def test_whole_grains_goes_to_the_largest_remainders(layers, density, allocation):
    densities = ALLOCATIONS[allocation](layers, density)
    counts = whole_grains(layers, densities, density)
    over = {name: counts[name] - densities[name] * layer.grains for name, layer in layers.items()}
    # Whoever was rounded up had the larger remainder, or all were equal.
    assert all(abs(value) < 1 + 1e-6 for value in over.values())
    assert max(over.values()) - min(over.values()) <= 1 + 1e-6


def feasible(layers, density) -> bool:
    least = sum(layer.least * layer.pattern.rows for layer in layers.values())
    most = sum(layer.most * layer.pattern.rows for layer in layers.values())
    return least <= asked(layers, density) <= most


@given(networks(), st.floats(0.01, 1))
def test_bounds_that_forbid_the_density_are_refused_with_numbers(layers, density):
    assume(not feasible(layers, density))
    for allocation in ALLOCATIONS.values():
        with pytest.raises(
            InvalidInput, match=rf"{asked(layers, density)} of \d+ weights, under bounds that allow \d+ to \d+"
        ):
            allocation(layers, density)


@given(networks(bounds=False, mixed=False), st.floats(0.01, 1))
def test_global_is_one_ranking_of_all_scores(layers, density):
    ranked = sorted(
        (-score, index, position)
        for index, layer in enumerate(layers.values())
        for position, score in enumerate(layer.scores.tolist())
    )
    kept = [index for _, index, _ in ranked[: round(density * len(ranked))]]
    counts = whole_grains(layers, global_(layers, density), density)
    assert list(counts.values()) == [kept.count(index) for index in range(len(layers))]


@given(networks(bounds=False, mixed=False), st.floats(0.01, 1), st.floats(0.01, 1))
def test_global_counts_grow_with_density(layers, one, other):
    fewer, more = (whole_grains(layers, global_(layers, density), density) for density in sorted((one, other)))
    assert all(fewer[name] <= more[name] for name in layers)


def test_global_under_bounds_keeps_the_best_it_may():
    layers = {
        "low": Layer((1, 4), Pattern(), min_density=0.5, scores=torch.tensor([1.0, 2.0, 3.0, 4.0])),
        "high": Layer((1, 4), Pattern(), max_density=0.5, scores=torch.tensor([10.0, 20.0, 30.0, 40.0])),
        "free": Layer((1, 4), Pattern(), scores=torch.tensor([5.0, 0.0, 6.0, 0.0])),
    }
    assert whole_grains(layers, global_(layers, 0.5), 0.5) == {"low": 2, "high": 2, "free": 2}
    assert whole_grains(layers, global_(layers, 7 / 12), 7 / 12) == {"low": 3, "high": 2, "free": 2}


def test_what_a_bound_has_put_in_does_not_compete_again():
    layers = {
        "sure": Layer((1, 4), Pattern(), min_density=0.5, scores=torch.tensor([40.0, 30.0, 2.0, 1.0])),
        "free": Layer((1, 4), Pattern(), scores=torch.tensor([5.0, 0.0, 6.0, 0.0])),
    }
    assert whole_grains(layers, global_(layers, 0.5), 0.5) == {"sure": 2, "free": 2}


def test_global_ranks_grains_of_different_size_by_their_score_per_weight():
    layers = {
        "vectors": Layer((4, 2), Pattern(4), scores=torch.tensor([8.0, 4.0])),
        "weights": Layer((1, 4), Pattern(), scores=torch.tensor([1.5, 3.0, 0.5, 0.1])),
    }
    assert whole_grains(layers, global_(layers, 5 / 12), 5 / 12) == {"vectors": 1, "weights": 1}
    assert whole_grains(layers, global_(layers, 6 / 12), 6 / 12) == {"vectors": 1, "weights": 2}


def test_bounds_move_the_excess_to_the_other_layers():
    layers = {"first": Layer((300, 784)), "second": Layer((100, 300)), "last": Layer((10, 100), max_density=0.5)}
    densities = erk(layers, 0.05)
    assert densities["last"] == 0.5
    assert densities["first"] / densities["second"] == pytest.approx((1084 / 235_200) / (400 / 30_000))
    assert weights(layers, whole_grains(layers, densities, 0.05)) == round(0.05 * 266_200)


@pytest.mark.parametrize(("bound", "grains"), [(0.1, 3), (0.7, 21), (0.05, 2), (1 / 3, 10)])
def test_bounds_in_grains_do_not_suffer_from_binary_fractions(bound, grains):
    assert Layer((30, 1), min_density=bound).least == grains


def test_bounds_without_a_whole_number_of_grains_between_are_refused():
    with pytest.raises(InvalidInput, match=r"for 4 grains; .* Use \[0.25, 0.5\]"):
        Layer((4, 1), Pattern(), 0.375, 0.375)


@pytest.mark.parametrize("bounds", [(0.5, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1)])
def test_bounds_that_are_no_interval_are_refused(bounds):
    with pytest.raises(InvalidInput, match="density bounds"):
        Layer((4, 4), Pattern(), *bounds)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("allocation", sorted(ALLOCATIONS))
def test_a_density_outside_the_unit_interval_is_refused(allocation, density):
    with pytest.raises(InvalidInput, match="a density in"):
        ALLOCATIONS[allocation]({"fc": Layer((4, 4), scores=torch.zeros(16))}, density)


def test_global_needs_scores_of_every_grain():
    with pytest.raises(InvalidInput, match="no scores for layer 'fc'"):
        global_({"fc": Layer((4, 4))}, 0.5)
    with pytest.raises(InvalidInput, match=r"one score for each of its 4 grains"):
        global_({"fc": Layer((4, 4), Pattern(4), scores=torch.zeros(16))}, 0.5)


def test_a_pattern_that_does_not_divide_the_layer_is_refused():
    with pytest.raises(PatternError):
        Layer((10, 100), Pattern(4))


def owl_as_published(scores, density, outlier, spread):
    """Layers of one size: shares of outliers, from 0 to twice the spread, moved so that their mean is the density."""
    shares = []
    for layer in scores:
        mean = sum(layer) / len(layer)
        shares.append(sum(score > outlier * mean for score in layer) / len(layer))
    rises = [2 * spread * (share - min(shares)) / (max(shares) - min(shares)) for share in shares]
    return [rise - sum(rises) / len(rises) + density for rise in rises]


def heavy(seed, layers=4, grains=(20, 10)):
    """Scores with tails that differ from layer to layer."""
    draw = torch.Generator().manual_seed(seed)
    return {
        str(i): Layer(
            grains, scores=torch.randn(math.prod(grains), generator=draw, dtype=torch.float64).abs() ** (i + 1)
        )
        for i in range(layers)
    }


@given(st.integers(0, 1000), st.floats(0.2, 0.8), st.floats(2, 6), st.floats(0.01, 0.1))
def test_owl_is_the_published_formula_where_layers_are_of_one_size(seed, density, outlier, spread):
    layers = heavy(seed)
    found = owl(layers, density, outlier=outlier, spread=spread)
    expected = owl_as_published([layer.scores.tolist() for layer in layers.values()], density, outlier, spread)
    assert list(found.values()) == pytest.approx(expected)
    assert max(found.values()) - min(found.values()) == pytest.approx(2 * spread)


def test_owl_keeps_the_total_where_layers_differ_in_size():
    layers = heavy(0) | {"wide": Layer((40, 50), scores=torch.ones(2000, dtype=torch.float64))}
    found = owl(layers, 0.3)
    kept = sum(found[name] * layer.weights for name, layer in layers.items())
    assert kept == pytest.approx(0.3 * sum(layer.weights for layer in layers.values()))
    assert found["wide"] == min(found.values()) > 0.2
    assert max(found.values()) - found["wide"] == pytest.approx(0.16)


def test_owl_without_a_difference_in_outliers_is_uniform():
    layers = {name: Layer((4, 5), scores=torch.ones(20)) for name in "ab"}
    assert owl(layers, 0.3) == uniform(layers, 0.3)


def test_owl_counts_layers_of_one_block_as_one():
    layers = heavy(3)
    found = owl(layers, 0.4, block=lambda name: "front" if name in "01" else "back")
    joined = {
        block: Layer((40, 10), scores=torch.cat([layers[name].scores for name in names]))
        for block, names in {"front": "01", "back": "23"}.items()
    }
    assert list(found.values()) == pytest.approx(
        [owl(joined, 0.4)[block] for block in ("front", "front", "back", "back")]
    )


def test_owl_does_not_look_at_what_may_not_be_kept():
    scores = heavy(5)["3"].scores
    layers = {"few": Layer((400, 1), scores=torch.cat([scores, torch.full((200,), -torch.inf)])), "flat": heavy(5)["0"]}
    whole = {"few": Layer((400, 1), scores=torch.cat([scores, scores])), "flat": heavy(5)["0"]}
    assert owl(layers, 0.3) == pytest.approx(owl(whole, 0.3))
    nothing = {"none": Layer((2, 1), scores=torch.full((2,), -torch.inf)), "some": heavy(5)["3"]}
    assert owl(nothing, 0.3)["none"] < owl(nothing, 0.3)["some"]


def test_owl_without_scores_is_refused():
    with pytest.raises(InvalidInput, match="no scores for layer 'a'"):
        owl({"a": Layer((2, 3))}, 0.5)


@pytest.mark.parametrize("options", [{"outlier": -1}, {"spread": -0.1}, {"spread": math.nan}])
def test_owl_with_options_that_mean_nothing_is_refused(options):
    with pytest.raises(InvalidInput, match=r"outlier=.*spread="):
        owl(heavy(0), 0.5, **options)


def test_an_allocation_with_options_of_its_own_reads_what_it_read_and_has_its_name():
    narrow = partial(owl, spread=0.02)
    assert (reads(narrow), allocation_name(narrow)) == ("wanda", "owl")
    assert allocation_name(lambda layers, density: {}) == "<lambda>"
