"""Tables of settings beside each other, with what held-out training examples say of them."""

from __future__ import annotations

from statistics import mean

from records import load, points

from pollard.report.accuracy import cells, grid, seeds_told
from pollard.report.choice import choices
from pollard.report.render import markdown
from pollard.report.significance import half_width


def bfloat16(layers: str, encoders: str) -> str:
    """bfloat16 on a CPU that multiplies it, dense products too: a layer, and a whole encoder in inference, from records of these names."""
    told: dict[tuple[str, float], dict[str, str]] = {}
    for record in load(layers):
        figure = f"{record['ms']:.1f} ms, {record['speedup']:.1f}x"
        told.setdefault((record["pattern"], record["density"]), {})[record["op"]] = figure
    rows = [
        [pattern, f"{density:.0%}", *(found.get(op, "") for op in ("forward", "forward+backward"))]
        for (pattern, density), found in told.items()
    ]
    whole: dict[tuple[str, str], list[str]] = {}
    for record in load(encoders):
        whole.setdefault((record["pattern"], record["dtype"]), []).append(f"{record['speedup']:.2f}x")
    head = ["encoder", "precision", *(f"{batch} x {length} tokens" for batch, length in ((32, 32), (1, 32), (1, 8)))]
    return "\n\n".join(
        (
            markdown(["pattern", "kept", "forward", "with both gradients"], rows, left=2),
            markdown(head, [[*case, *found] for case, found in whole.items()], left=2),
        )
    )


def few_samples() -> str:
    """A layer for one sample, four and eight, beside the fastest dense way of the same precision."""
    told: dict[tuple[str, str, float], dict[int, str]] = {}
    for record in load("few_samples_1_threads.json"):
        case = record["pattern"], record["dtype"], record["density"]
        told.setdefault(case, {})[record["shape"][2]] = f"{record['ms']:.2f} ms, {record['speedup']:.1f}x"
    batches = sorted({batch for found in told.values() for batch in found})
    head = ["pattern", "precision", "kept", *(f"{batch} sample{'s' * (batch > 1)}" for batch in batches)]
    return markdown(
        head,
        [
            [pattern, dtype, f"{density:.0%}", *(found.get(batch, "") for batch in batches)]
            for (pattern, dtype, density), found in told.items()
        ],
        left=3,
    )


def exchanges() -> str:
    """RigL and SET by how often and how much they exchange; a method and number of steps a row, what held-out examples choose in bold."""
    found = points("exchange")
    spreads, held_out = cells(found), cells(found, "validation_accuracy")
    chosen = {one.label for one in choices(found)}
    settings = {point["label"]: (point["series"], point["recipe"]) for point in found}
    told = {}
    for (label, density), spread in spreads.items():
        series, recipe = settings[label]
        text = f"{spread.percent()} ({100 * held_out[label, density].mean:.2f})"
        told[series, recipe["update_every"], recipe["drop_fraction"]] = f"**{text}**" if label in chosen else text
    fractions = sorted({fraction for *_, fraction in told if fraction})
    rows = [
        [method, f"{every} steps", *(told[method, every, fraction] for fraction in fractions)]
        for method, every in dict.fromkeys((method, every) for method, every, fraction in told if fraction)
    ]
    still = [["static", "never", *[told["static", 0, 0.0]] * len(fractions)]]
    head = [
        seeds_told(spreads.values()),
        "an exchange every",
        *(f"{100 * each:.0f} % of a layer" for each in fractions),
    ]
    return markdown(head, still + rows, left=2)


def equal_time(study: str) -> str:
    """Test accuracy by grain and density of equal seconds of training, and the epochs that those are."""
    found = points(study)
    epochs = {(point["label"], point["density"]): point["epochs"] for point in found}
    spreads = cells(found)
    told = {cell: f"{spread.percent()}, {epochs[cell]} epochs" for cell, spread in spreads.items()}
    (_, *columns), rows = grid(found, told)
    return markdown([seeds_told(spreads.values()), *columns], rows)


def newcomers() -> str:
    """What counts of steps of one's own change, seed by seed, with intervals; of test accuracies only what lies between."""
    found = load("newcomers.json")
    names = {"rigl": "RigL", "set": "SET"}
    figures = {"validation_accuracy": 1, "validation_loss": 3, "test_accuracy": 1}
    rows = []
    for method, rate in dict.fromkeys((row["method"], row["rate"]) for row in found):
        told = [names[method], f"{rate:g}"]
        for figure, digits in figures.items():
            ways = [
                {row["seed"]: row[figure] for row in found if (row["method"], row["rate"], row["own_steps"]) == (method, rate, own)}
                for own in (False, True)
            ]  # fmt: skip
            gained = [ways[1][seed] - value for seed, value in ways[0].items()]
            every = [gained] if figure == "test_accuracy" else [*(list(way.values()) for way in ways), gained]
            told += [f"{mean(values):.{digits}f} ± {half_width(values):.{digits}f}" for values in every]
        rows.append(told)
    columns = ["one count", "counts of their own", "difference"]
    head = [f"{what}: {column}" for what in ("held-out accuracy", "held-out loss") for column in columns]
    seeds = len({row["seed"] for row in found})
    return markdown([f"± 95 %, n = {seeds}", "rate", *head, "test accuracy: difference"], rows)


def forms() -> str:
    """Held-out accuracy of both forms of Top-KAST, and what lies between, seed by seed."""
    found = load("top-kast-forms.json")
    rows = []
    for density in dict.fromkeys(row["density"] for row in found):
        own, published = (
            [row["validation_accuracy"] for row in found if (row["density"], row["dense_memory"]) == (density, dense)]
            for dense in (False, True)
        )
        between = [there - here for here, there in zip(own, published, strict=True)]
        told = [f"{mean(each):.1f} ± {half_width(each):.1f}" for each in (own, published, between)]
        rows.append([f"{100 * density:g} %", *told])
    seeds = len({row["seed"] for row in found})
    head = ["random newcomers (default)", "`dense_memory=True`", "difference"]
    return markdown([f"kept; ± 95 %, n = {seeds}", *head], rows)


def windows() -> str:
    """What the gradients of the last steps grow of what the mean of all steps would."""
    found = load("snfs-window.json")
    head = ["steps in the window", *(f"{row['window']}" for row in found)]
    told = [
        [name, *(f"{row[key]:.0f} %" for row in found)]
        for name, key in (("same positions", "same_percent"), ("in the worst update", "worst_percent"))
    ]
    return markdown(head, told)
