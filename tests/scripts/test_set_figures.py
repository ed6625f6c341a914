"""The table of SET's own network grows with its record."""

from __future__ import annotations

import set_figures

AFTER_200 = {"seeds": 2, "mean": 66.14, "deviation": 0.19, "published": 65.5}
SHORT = {
    "method": "set",
    "device": "cpu",
    "precision": "float32",
    "epochs": [200, 200],
    "after": {"200": AFTER_200},
    "published_best_of_1000": 73.85,
}
LONG = SHORT | {
    "device": "NVIDIA H200",
    "epochs": [609],
    "after": {
        "200": AFTER_200 | {"seeds": 1, "deviation": None},
        "400": {"seeds": 1, "mean": 69.89, "deviation": None, "published": 69.46},
    },
}


def table(monkeypatch, *rows):
    monkeypatch.setattr(set_figures, "load", lambda _: list(rows))
    head, _, *found = set_figures.network_of_set().strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *found)]


def test_of_200_epochs_on_one_device(monkeypatch):
    assert table(monkeypatch, SHORT) == [
        ["%, published in brackets", "on", "seeds", "epochs 181 to 200", "published, best of 1,000"],
        ["set", "CPU", "2", "66.1 ± 0.2 (65.5)", "73.85"],
    ]


def test_of_more_epochs_beside_those_of_another_device(monkeypatch):
    head, *rows = table(monkeypatch, SHORT, LONG, LONG | {"precision": "tf32"})
    assert head[3:5] == ["epochs 181 to 200", "epochs 381 to 400"]
    assert rows == [
        ["set", "CPU", "2", "66.1 ± 0.2 (65.5)", "", "73.85"],
        ["set", "H200", "1", "66.1 (65.5)", "69.9 (69.5)", "73.85"],
        ["set", "H200, tf32", "1", "66.1 (65.5)", "69.9 (69.5)", "73.85"],
    ]
