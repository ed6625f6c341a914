"""Choices are measured once, remembered on disk, and a damaged memory is measured again."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from pollard.formats.topology import Topology
from pollard.kernels.code.target import current, host_isas
from pollard.kernels.products import dispatch, tuning
from pollard.kernels.products.derived import bounds, derived_bytes, tiling, widths
from pollard.kernels.products.tuning import Choice

pytestmark = pytest.mark.skipif(not host_isas(), reason="no generator for this CPU")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("POLLARD_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_decisions", {})
    monkeypatch.setattr(tuning, "_read", {})
    monkeypatch.setattr(tuning, "SMALL", 0)


def run(topology, batch=64):
    return dispatch.forward(torch.randn(batch, topology.shape[1]), torch.randn(topology.nnz), topology)


def another_process():
    tuning._decisions.clear()
    tuning._read.clear()


PAIR = [Choice(1, 0), Choice(2, 0)]


def decided(key="a problem", candidates=PAIR):
    return tuning.decide(key, 1, candidates, lambda choice: lambda: time.sleep(0.001 * choice.vectors))


def test_who_was_interrupted_once_is_measured_again_and_who_is_far_behind_is_not(monkeypatch):
    best, near, far = Choice(1, 0), Choice(2, 0), Choice(3, 0)
    # Warmed up, and then round by round: a second candidate is 1.2 times slower at first, and the fastest afterwards.
    seconds = {best: [9.0] + [1.0] * 10, near: [9.0, 1.2] + [0.9] * 9, far: [9.0, 1.4]}
    now, ran = [0.0], []

    def work(choice):
        def run():
            ran.append(choice)
            now[0] += seconds[choice].pop(0)

        return run

    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now[0])
    assert tuning.decide("a problem", 1, [best, near, far], work).choice == near
    assert [ran.count(each) for each in (best, near, far)] == [1 + tuning.ROUNDS, 1 + tuning.ROUNDS, 2]


def test_the_fastest_candidate_is_taken_and_remembered():
    slow, fast = Choice(1, 0), Choice(2, 0)
    delays = {slow: 0.01, fast: 0.0}
    calls = []

    def work(choice):
        calls.append(choice)
        return lambda: time.sleep(delays[choice])

    first = tuning.decide("a problem", 1, [slow, fast], work)
    assert first.choice == fast
    assert [choice for choice, _ in first.candidates] == [fast, slow]
    another_process()
    calls.clear()
    again = tuning.known("a problem", lambda: [slow, fast])
    assert again.choice == fast
    assert [choice for choice, _ in again.candidates] == [fast, slow]
    assert again.reason.endswith("remembered")
    assert not calls


GOOD = {
    "vectors": 2,
    "width": 0,
    "packed": True,
    "transposed": False,
    "pairs": False,
    "reason": "fastest",
    "candidates": [],
}
NONSENSE = [
    "",
    "{",
    "[]",
    "[" * 100_000,
    '{"a problem": ' * 100_000,
    "\xff",
    *(
        json.dumps({"a problem": entry})
        for entry in (
            3,
            None,
            [],
            "text",
            *({**GOOD, "vectors": vectors} for vectors in ("x", 0, -1, 3, None, 1e300, float("inf"), [2], {})),
            *({**GOOD, "width": width} for width in (-1, 16, float("nan"), 10**400)),
            {**GOOD, "packed": False},
            {**GOOD, "transposed": True},
            {name: GOOD[name] for name in GOOD if name != "width"},
            *({**GOOD, "candidates": listed} for listed in (None, 7, [3], [{"choice": GOOD, "us": float("nan")}])),
            {**GOOD, "candidates": [{"choice": {"vectors": 2}, "us": 1.0}]},
            {**GOOD, "candidates": [{"choice": GOOD, "us": 10**400}]},
        )
    ),
]


@pytest.mark.parametrize("content", NONSENSE, ids=lambda content: content[:60])
def test_what_is_no_candidate_or_makes_no_sense_is_measured_again(tmp_path, content):
    (tmp_path / f"tuning-v{tuning.VERSION}.json").write_text(content, encoding="latin-1")
    assert tuning.known("a problem", lambda: PAIR) is None
    taken = decided()
    assert "measured" in taken.reason
    another_process()
    assert tuning.known("a problem", lambda: PAIR).choice == taken.choice


def test_an_entry_that_equals_a_candidate_only_in_number_gives_the_candidate(tmp_path):
    entry = {**GOOD, "vectors": 2.0, "width": False, "packed": 1}
    (tmp_path / f"tuning-v{tuning.VERSION}.json").write_text(json.dumps({"a problem": entry}))
    found = tuning.known("a problem", lambda: PAIR).choice
    assert found is PAIR[1]


def test_a_file_too_large_to_be_ours_is_not_read(tmp_path, monkeypatch):
    decided()
    another_process()
    monkeypatch.setattr(tuning, "MOST", (tmp_path / f"tuning-v{tuning.VERSION}.json").stat().st_size - 1)
    assert tuning.known("a problem", lambda: PAIR) is None


def test_the_file_is_read_once(monkeypatch):
    decided()
    another_process()
    reads = []
    entries = tuning._entries
    monkeypatch.setattr(tuning, "_entries", lambda path: reads.append(path) or entries(path))
    assert [tuning.known(f"problem {number}", lambda: PAIR) for number in range(9)] == [None] * 9
    assert tuning.known("a problem", lambda: PAIR) is not None
    assert len(reads) == 1


def test_what_another_process_measured_meanwhile_stays():
    assert tuning.known("mine", lambda: PAIR) is None
    program = (
        "import time\nfrom pollard.kernels.products import tuning\ntuning.SMALL = 0\n"
        "pair = [tuning.Choice(1, 0), tuning.Choice(2, 0)]\n"
        "tuning.decide('theirs', 1, pair, lambda choice: lambda: time.sleep(0.001 * choice.vectors))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "POLLARD_TUNING": "measure"})
    decided("mine")
    another_process()
    assert all(tuning.known(key, lambda: PAIR) is not None for key in ("mine", "theirs"))


def test_a_remembered_choice_that_would_be_wrong_here_never_reaches_a_kernel(tmp_path):
    topology = Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0))
    values, x = torch.randn(topology.nnz), torch.randn(64, 4096)
    right = dispatch.forward(x, values, topology)
    file = tmp_path / f"tuning-v{tuning.VERSION}.json"
    held = json.loads(file.read_text())
    for change in ({"width": -1}, {"packed": False}, {"vectors": 0}, {"vectors": -8}, {"transposed": True}):
        file.write_text(json.dumps({key: {**entry, **change} for key, entry in held.items()}))
        another_process()
        fresh = Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(dispatch.forward(x, values, fresh), right)
        assert all("measured" in decision.reason for decision in tuning._decisions.values())


def test_choices_are_measured_by_one_thread_at_a_time_and_each_problem_once():
    inside, most, built = [], [], []

    def build(choice):
        built.append(choice)

        def run():
            inside.append(choice)
            most.append(len(inside))
            time.sleep(0.0005)
            inside.pop()

        return run

    threads = [
        threading.Thread(target=tuning.decide, args=(f"problem {number % 3}", 1, PAIR, build)) for number in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(built) == 3 * len(PAIR)


def test_real_products_are_tuned_and_losing_tiles_are_dropped():
    topology = Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0))
    run(topology)
    (decision,) = tuning._decisions.values()
    assert len(decision.candidates) > 1
    assert len(widths(topology)) == 1


def test_a_transpose_that_lost_is_dropped(monkeypatch):
    topology = Topology.random((512, 256), 0.2, generator=torch.Generator().manual_seed(0))

    def race(choices, build):
        for choice in choices:
            build(choice)
        assert widths(topology, transposed=True)
        return [(choice, 1.0) for choice in choices if not choice.transposed]

    monkeypatch.setattr(tuning, "_race", race)
    dispatch.input_grad(torch.randn(64, 512), torch.randn(topology.nnz), topology)
    assert not widths(topology, transposed=True)


def test_a_transpose_that_a_call_uses_is_kept_and_counted_whatever_comes_after_it(monkeypatch):
    monkeypatch.setattr(tuning, "SMALL", 1e9)  # the first candidate is taken: the input gradient gathers the transpose
    topology = Topology.random((512, 256), 0.2, generator=torch.Generator().manual_seed(0))
    alone = topology.bytes + derived_bytes(topology)
    values = torch.randn(topology.nnz)
    dispatch.input_grad(torch.randn(64, 512), values, topology)
    held = topology.bytes + derived_bytes(topology)
    assert held >= alone + 6 * topology.nnz
    dispatch.forward(torch.randn(64, 256), values, topology)
    assert topology.bytes + derived_bytes(topology) >= held


def test_small_problems_are_not_measured(monkeypatch):
    monkeypatch.setattr(tuning, "SMALL", 1e9)
    run(Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0)))
    (decision,) = tuning._decisions.values()
    assert "too few" in decision.reason


def test_tuning_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("POLLARD_TUNING", "default")
    run(Topology.random((64, 4096), 0.2, generator=torch.Generator().manual_seed(0)))
    assert not tuning._decisions


@pytest.mark.parametrize("width", [1, 16, 100, 299, 300, 1000])
def test_tiles_cut_each_row_where_columns_pass_their_borders(width):
    topology = Topology.random((37, 300), 0.2, generator=torch.Generator().manual_seed(0))
    tiles = tiling(topology, width)
    mask = topology.mask()
    for tile in range(tiles.tiles):
        begins = tiles.pointers[tile * tiles.stride : tile * tiles.stride + 37]
        ends = tiles.pointers[tile * tiles.stride + tiles.end : tile * tiles.stride + tiles.end + 37]
        assert torch.equal(ends - begins, mask[:, tile * tiles.width : (tile + 1) * tiles.width].sum(1).int())


def test_chunks_hold_about_equal_work_and_cover_all_rows():
    topology = Topology.random((500, 40), 0.3, generator=torch.Generator().manual_seed(0))
    cut = bounds(topology, 4)
    assert cut[0] == 0
    assert cut[-1] == topology.groups
    work = topology.row_pointers[cut.long()].diff()
    assert work.max() - work.min() <= 2 * 40
    assert derived_bytes(topology) >= cut.nbytes


def test_problems_are_told_apart_by_what_matters():
    target = current()
    assert target is not None
    sparse, denser = (Topology.random((64, 64), density) for density in (0.05, 0.5))
    keys = {
        tuning.problem(operation, target, topology, batch, layout=layout, threads=threads)
        for operation in ("gather", "scatter")
        for topology in (sparse, denser)
        for batch in (1, 64)
        for layout in ("row-major", "column-major")
        for threads in (1, 2)
    }
    assert len(keys) == 32
