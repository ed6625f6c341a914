"""The whole promise, in a fresh process whose address space no dense weight fits: born, pruned, trained, saved, loaded."""

from __future__ import annotations

import pytest

from fresh_process import ONLY_LINUX, told_by, told_by_lines


@pytest.mark.slow
@ONLY_LINUX
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_allocated_is_born_pruned_trained_by_a_moving_topology_saved_and_loaded():
    told = told_by(
        "never_dense.py",
        "--widths=4096-16384-10", "--density=0.002", "--limit=700", "--batch=32", "--steps=8", "--moving=rigl:1", "--rate=0.3"
    )  # fmt: skip
    assert told["dense_weight"] == "cannot be allocated"
    assert told["kept"] == round(0.002 * told["weights"])
    assert told["losses"][-1] < told["losses"][0]
    assert told["updates"] >= 1
    peaks = [each["peak"] for each in told.values() if isinstance(each, dict)]
    assert max(peaks) < told["dense_bytes"] / 2


@pytest.mark.slow
@ONLY_LINUX
def test_its_peak_does_not_grow_with_the_dense_size():
    small, large = (
        told_by(
            "never_dense.py",
            f"--widths=256-{hidden}-10",
            f"--density={2**20 / hidden / 256 / 16}",
            "--batch=4",
            "--steps=0",
        )
        for hidden in (1 << 16, 1 << 19)
    )
    assert large["weights"] > 7 * small["weights"]
    assert large["kept"] == pytest.approx(small["kept"], rel=0.01)
    # Activations grow, here of four examples, two megabytes each at most; weights do not.
    assert large["pruned"]["peak"] - small["pruned"]["peak"] < large["dense_bytes"] / 4


REDUCED = """
import pollard
from pollard.report.measure import forget_peak_rss, peak_rss_bytes, rss_bytes
from torch import nn

with pollard.never_dense(seed=0):
    layer = nn.Linear(16384, 8192)
weight = layer.weight.detach().double()
grown = []
for reduce in (lambda: weight.abs().amax(), lambda: weight.abs().sum(1)):
    forget_peak_rss()
    before = rss_bytes()
    reduce()
    grown.append(peak_rss_bytes() - before)
print(grown)
"""


@pytest.mark.slow
@ONLY_LINUX
def test_what_is_reduced_block_by_block_leaves_no_blocks_behind():
    # Small numbers that are made between two blocks, and kept, would each hold the room of one.
    assert max(told_by_lines(REDUCED)) < 8192 * 16384 * 8 / 4


@pytest.mark.slow
@ONLY_LINUX
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", [["snip"], ["grasp"], ["synflow", "--rounds=18"]], ids=lambda rule: rule[0])
def test_what_a_decision_takes_is_what_was_foretold(rule):
    name, *rounds = rule
    told = told_by(
        "never_dense.py", f"--criterion={name}", "--widths=2048-4096-8192-10", "--density=0.01", "--steps=0", *rounds
    )
    foreseen, pruned = told["foreseen"], told["pruned"]
    assert pruned["peak"] / 2 < foreseen["peak"] < 2 * pruned["peak"]
    assert (foreseen["seconds"] is None) == (not rounds)  # a decision of seconds is not worth a rehearsal
    if rounds:
        took = pruned["seconds"] - foreseen["told after"]
        # Others may use the machine in one half of it, and not in the other.
        assert took / 6 < foreseen["seconds"] < 6 * took
