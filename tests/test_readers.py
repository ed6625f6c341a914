"""Whatever lies in a file, each of the package's readers gives a value or a Pollard error, and nothing else."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pollard.data.archive import unpack
from pollard.data.idx import read_idx
from pollard.errors import PollardError, StoreError
from pollard.formats import Topology, load_tensors, load_topologies, save_tensors, save_topologies
from pollard.pruning.plan import Plan
from pollard.reading import DEEPEST, LARGEST, read_bytes, read_json, read_toml
from pollard.recipes import Recipe, RunResult
from pollard.recipes.folder import read_json as read_object
from pollard.recipes.points import read_study
from pollard.recipes.study import Study, read_ledger
from pollard.report.accuracy import accuracy_table, csv_text
from pollard.report.measure import ModuleBytes
from pollard.training import Checkpoint, read_metrics


@dataclass(frozen=True)
class Reader:
    """A reader by the name of its file, and what a whole file of its kind holds."""

    file: str
    read: Any
    whole: Any


def result() -> RunResult:
    figures = {
        "test_accuracy": 0.9, "test_loss": 0.3, "train_loss": 0.2, "density": 0.1, "densities": {"fc1": 0.1},
        "explored_rate": 0.1, "nnz": 10, "weights": 100, "peak_rss_bytes": 5, "baseline_rss_bytes": 4,
        "seconds_per_step": 0.1, "epochs": 1, "steps": 3, "threads": 1, "versions": {"torch": "2"},
    }  # fmt: skip
    held = ModuleBytes(1, 2, 3, 4, 5, 6)
    return RunResult(folder=Path(), recipe=Recipe(epochs=1), bytes=held, **figures)  # type: ignore[arg-type]


def checkpoint() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    steps = torch.optim.Adam(model.parameters())
    Checkpoint(
        identity="run", step=7, model=model.state_dict(), optimizer=steps.state_dict(), noise=torch.get_rng_state(),
        seconds=torch.tensor([0.25]), loss_sum=0.5, metrics_bytes=12, record={"epoch": 1},
    ).save(Path("checkpoint"))  # fmt: skip


def resume(path: Path) -> None:
    model = nn.Linear(3, 2)
    Checkpoint.load(path, "run").restore(model, torch.optim.Adam(model.parameters()))


def archive() -> None:
    with tarfile.open("archive", mode="w:gz") as tar:
        entry = tarfile.TarInfo("d/x")
        entry.size = 300
        tar.addfile(entry, io.BytesIO(torch.arange(300, dtype=torch.uint8).numpy().tobytes()))


def package() -> None:
    archive()
    body = Path("archive").read_bytes()
    header = b"data.tar.gz/".ljust(48) + str(len(body)).encode().ljust(10) + b"`\n"
    Path("package").write_bytes(b"!<arch>\n" + header + body)


def ledger() -> str:
    run = result().recipe.digest
    return json.dumps({"title": "a study", "published": [], "first": [], "runs": [{"label": "a", "run": run}]})


def study(path: Path) -> None:
    """A study's ledger beside the folder of its one run, as a report reads both."""
    found = read_study(path.parent)
    if found.points:
        csv_text(found.points)
        accuracy_table(found.points, read_ledger(path.parent)["title"])


IDX = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(6)
STUDY = 'title = "t"\n[recipe]\nepochs = 1\n[grid]\ndensity = [0.1]\n[[series]]\nlabel = "a"\n'
TOPOLOGIES = {"a": Topology.full((4, 3), "v2"), "b": Topology.full((2, 2))}
READERS = {
    "recipe.toml": Reader("recipe.toml", Recipe.read, Recipe().to_toml().encode()),
    "recipe.json": Reader("recipe.json", Recipe.read, json.dumps(Recipe().to_dict()).encode()),
    "study.toml": Reader("study.toml", Study.read, STUDY.encode()),
    "study.json": Reader("study.json", lambda path: read_ledger(path.parent), ledger().encode()),
    "object": Reader("object", read_object, b'{"a": 1}'),
    "result.json": Reader(
        "result.json", lambda path: RunResult.read(path.parent), json.dumps(result().to_dict()).encode()
    ),
    "metrics": Reader("metrics", read_metrics, b'{"epoch": 1, "loss": 0.5}\n{"epoch": 2}\n'),
    "tensors": Reader("tensors", load_tensors, lambda: save_tensors("tensors", {"w": torch.ones(3)}, {"a": 1})),
    "topologies": Reader("topologies", load_topologies, lambda: save_topologies("topologies", TOPOLOGIES)),
    "plan": Reader("plan", Plan.load, lambda: Plan(TOPOLOGIES, "snip").save("plan")),
    "checkpoint": Reader("checkpoint", resume, checkpoint),
    "idx": Reader("idx", read_idx, IDX),
    "idx.gz": Reader("idx.gz", read_idx, gzip.compress(IDX)),
    "archive": Reader("archive", lambda path: unpack(path, {"d/x": Path("x")}), archive),
    "package": Reader("package", lambda path: unpack(path, {"d/x": Path("x")}), package),
}


def whole(reader: Reader) -> bytes:
    if callable(reader.whole):
        reader.whole()
        return Path(reader.file).read_bytes()
    return bytes(reader.whole)


def refused(reader: Reader, content: bytes) -> bool:
    """Whether a reader refuses `content` with a Pollard error; any other error is raised."""
    path = Path(reader.file).absolute()
    path.write_bytes(content)
    try:
        reader.read(path)
    except PollardError:
        return True
    return False


@st.composite
def damage(draw, content: bytes) -> bytes:
    """`content` cut, changed, doubled or stretched at places of its own."""
    broken = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(broken)))
        stop = draw(st.integers(start, min(len(broken), start + 40)))
        kind = draw(st.sampled_from(["flip", "cut", "noise", "double", "end"]))
        if kind == "flip" and start < len(broken):
            broken[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del broken[start:stop]
        elif kind == "noise":
            broken[start:stop] = draw(st.binary(max_size=12))
        elif kind == "double":
            broken[stop:stop] = broken[start:stop]
        elif kind == "end":
            del broken[start:]
    return bytes(broken)


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name):
    assert not refused(READERS[name], whole(READERS[name]))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(name, data):
    reader = READERS[name]
    refused(reader, data.draw(damage(whole(reader))))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=30)
@given(noise=st.binary(max_size=200))
def test_noise_is_read_or_refused(name, noise):
    refused(READERS[name], noise)


DEEP = {"a.toml": b"a = " + b"[" * 200_000, "table.toml": b"[" + b"a." * 5000 + b"b]\n"}
DEEP |= {"lists.json": b"[" * 200_000, "dicts.json": b'{"a":' * 200_000, "101.json": b"[" * 101 + b"]" * 101}


@pytest.mark.parametrize("name", DEEP)
def test_nesting_is_bounded(name):
    read = read_toml if name.endswith("toml") else read_json
    Path(name).write_bytes(DEEP[name])
    with pytest.raises(StoreError, match="nested"):
        read(name, "a file", "Write one.")


@pytest.mark.parametrize("name", ["recipe.toml", "recipe.json", "study.toml", "study.json", "result.json", "metrics"])
@pytest.mark.parametrize("content", DEEP.values())
def test_every_reader_of_text_refuses_what_is_nested_too_deeply(name, content):
    assert refused(READERS[name], content + b"\n")


def test_nesting_within_the_bound_is_read():
    Path("deep.json").write_text("[" * DEEPEST + "]" * DEEPEST)
    assert read_json("deep.json", "a file", "Write one.")


def test_size_is_bounded():
    with Path("large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(StoreError, match="more than 67,108,864 bytes"):
        read_bytes("large", "a file", "Write one.")


@pytest.mark.parametrize("path", ["missing", ".", "a\0b"])
def test_a_path_that_cannot_be_read_is_refused(path):
    with pytest.raises(StoreError):
        read_json(path, "a file", "Write one.")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([entry.name for entry in fields(Recipe)]), JSON, min_size=1, max_size=3))
def test_no_value_of_a_recipe_brings_it_down(values):
    try:
        recipe = Recipe.from_dict(values)
    except PollardError:
        return
    assert len(recipe.digest) == 12


NUMBERS = [entry.name for entry in fields(Recipe) if isinstance(entry.default, float)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("method", ["rigl", "snip"])
def test_no_number_of_a_recipe_is_infinite(name, value, method):
    with pytest.raises(PollardError, match=r"finite|number"):
        Recipe.from_dict({"method": method, name: value})


@pytest.mark.parametrize("text", ["fraction=inf", "until=nan", "every=1e400", "start_density=-inf"])
def test_no_option_of_a_method_is_infinite(text):
    with pytest.raises(PollardError):
        Recipe(method="gmp", method_options=text)


@settings(max_examples=150)
@given(st.sampled_from(sorted(result().to_dict())), JSON)
def test_no_value_of_a_result_brings_a_report_down(name, value):
    folder = Path(result().recipe.digest)
    folder.mkdir(exist_ok=True)
    Path("study.json").write_text(ledger())
    (folder / "metrics.jsonl").write_text('{"test_accuracy": 0.5}\n')
    (folder / "result.json").write_text(json.dumps(result().to_dict() | {name: value}))
    study(Path("study.json").absolute())


@settings(max_examples=100)
@given(st.sampled_from(["title", "published", "first", "runs"]), JSON)
def test_no_value_of_a_ledger_brings_a_report_down(name, value):
    told = json.loads(ledger()) | {name: value}
    Path("study.json").write_text(json.dumps(told))
    with suppress(StoreError):
        study(Path("study.json").absolute())


@settings(max_examples=100)
@given(st.sampled_from(["step", "loss_sum", "metrics_bytes", "record", "state", "identity", "format"]), JSON)
def test_no_value_of_a_checkpoint_brings_a_resume_down(name, value):
    checkpoint()
    tensors, metadata = load_tensors("checkpoint")
    save_tensors("checkpoint", tensors, metadata | {name: value})
    with suppress(StoreError):
        resume(Path("checkpoint"))


@pytest.mark.parametrize("name", ["noise", "seconds"])
@pytest.mark.parametrize("tensor", [torch.ones(3), torch.ones(2, 2), torch.ones(7, dtype=torch.uint8)])
def test_no_tensor_of_a_checkpoint_is_taken_for_another(name, tensor):
    checkpoint()
    tensors, metadata = load_tensors("checkpoint")
    assert name in tensors
    save_tensors("checkpoint", tensors | {name: tensor}, metadata)
    if name == "seconds" and tensor.dim() == 1 and tensor.is_floating_point():
        resume(Path("checkpoint"))
        return
    with pytest.raises(StoreError, match=name):
        resume(Path("checkpoint"))


@pytest.mark.parametrize("place", [-1, -5, -8])
def test_a_wrong_checksum_of_an_archive_is_seen(place):
    archive()
    content = bytearray(Path("archive").read_bytes())
    content[place] ^= 1
    assert refused(READERS["archive"], bytes(content))
