"""Tables of what networks take in memory, from records."""

from __future__ import annotations

from records import load

from pollard.report.render import markdown


def memory() -> str:
    """What training a network holds whose dense form takes gigabytes."""
    told = load("memory.json")
    held = told["bytes"]
    sizes = [held["values"] + held["dense"], held["indices"], held["gradients"], held["optimizer"]]
    sizes += [told["activations"], told["peak_above_baseline"], told["dense_form"]]
    head = ["network", "density", "weights and biases", "indices", "gradients", "Adam's moments", "activations"]
    row = ["16384-16384-16384-10, batch 128", "1 %", *(f"{size / 1e6:,.0f} MB" for size in sizes)]
    return markdown([*head, "peak above baseline", "dense form, without activations"], [row])


def never_dense() -> str:
    """Peaks and times of pruning without dense weights, and beside the dense path."""
    rows = []
    for told in load("never-dense.json").values():
        peak, moments = told["pruned"]["peak"], ("born", "pruned", "made sparse", "trained", "saved and loaded")
        rows.append(
            [
                told["widths"],
                f"{told['weights'] / 1e9:,.1f}",
                f"{told['kept']:,}",
                told["criterion"],
                "with memory" if told["dense"] else "without",
                f"{told['dense_bytes'] / 1e6:,.0f} MB",
                f"{peak / 1e6:,.0f} MB",
                f"{max(told[each]['peak'] for each in moments) / 1e6:,.0f} MB",
                f"{told['pruned']['seconds']:,.0f} s",
            ]
        )
    head = [
        "network, batch 128",
        "billion weights",
        "kept",
        "criterion",
        "weights",
        "dense weights alone",
        "peak while deciding",
    ]
    return markdown([*head, "peak of all", "time to decide"], rows)


def moving_memory() -> str:
    """Peak memory with and without updates, compressed and masked."""
    rows = [
        [
            record["network"],
            record["storage"],
            "RigL, an update every 4 steps" if record["moving"] else "static",
            *(f"{size / 1e6:,.0f} MB" for size in (record["counted"], record["peak_above_baseline"])),
            f"{record['ratio']:.2f}",
        ]
        for record in load("moving-memory.json")
    ]
    head = [
        "network",
        "storage",
        "topology",
        "values, indices, gradients, moments, activations",
        "peak above baseline",
        "ratio",
    ]
    return markdown(head, rows, left=3)


def checkpoints() -> str:
    """Peaks and seconds of pruning checkpoints from file to file."""
    rows = [
        [
            f"{told['bytes'] / 1e9:.2f} GB",
            told["allocation"],
            f"{100 * told['density']:g} %",
            *(f"{size / 1e6:,.0f} MB" for size in (8 * told["kept"], told["peak_above_baseline"])),
            f"{1e9 * told['seconds'] / told['bytes']:.1f}",
        ]
        for told in load("checkpoints.json")["rows"]
    ]
    head = ["file", "allocation", "kept", "what is kept, in the file", "peak memory above the start"]
    return markdown([*head, "seconds of a core a GB"], rows, left=2)
