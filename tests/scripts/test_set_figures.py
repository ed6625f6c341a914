"""The table of SET's own network grows with its record."""

from __future__ import annotations

import set_figures

SHORT = {
    "method": "set",
    "device": "cpu",
    "precision": "float32",
    "seeds": 2,
    "mean_of_181_to_200": 66.14,
    "deviation_of_mean_of_181_to_200": 0.19,
    "published": 65.5,
    "seeds_of_1000": 0,
    "mean_of_981_to_1000": None,
    "deviation_of_mean_of_981_to_1000": None,
    "best_of_1000": None,
    "deviation_of_best_of_1000": None,
    "published_best_of_1000": 73.85,
}
WHOLE = SHORT | {
    "device": "NVIDIA H200",
    "seeds": 1,
    "deviation_of_mean_of_181_to_200": None,
    "seeds_of_1000": 1,
    "mean_of_981_to_1000": 72.96,
    "best_of_1000": 73.4,
}


def table(monkeypatch, *rows):
    monkeypatch.setattr(set_figures, "load", lambda _: list(rows))
    head, _, *found = set_figures.network_of_set().strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *found)]


def test_of_200_epochs_on_one_device(monkeypatch):
    assert table(monkeypatch, SHORT) == [
        ["", "epochs 181 to 200, %", "seeds", "published, the same epochs, %", "published, best of 1,000, %"],
        ["set", "66.1 ± 0.2", "2", "65.5", "73.85"],
    ]


def test_of_1000_epochs_beside_those_of_another_device(monkeypatch):
    head, *rows = table(monkeypatch, SHORT, WHOLE, WHOLE | {"precision": "tf32"})
    assert head[:3] == ["", "on", "epochs 181 to 200, %"]
    assert rows == [
        ["set", "CPU", "66.1 ± 0.2", "2", "65.5", "", "", "", "73.85"],
        ["set", "H200", "66.1", "1", "65.5", "73.0", "73.40", "1", "73.85"],
        ["set", "H200, tf32", "66.1", "1", "65.5", "73.0", "73.40", "1", "73.85"],
    ]
    assert [len(row) for row in rows] == [len(head)] * 3
