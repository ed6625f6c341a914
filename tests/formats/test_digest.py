"""The digest takes its place in the header after the tensors are written, whatever else the header holds."""

import json
from pathlib import Path

import pytest
import torch

from pollard.formats import store
from pollard.formats.store import load_tensors, save_tensors
from pollard.formats.tensorfile import digest_of

FILE = "kept.safetensors"
LIKE_OURS = json.dumps({"pollard": store._DIGEST + store._BLANK})


@pytest.mark.parametrize("text", [store._BLANK, store._DIGEST + store._BLANK, LIKE_OURS, LIKE_OURS[1:-2]])
def test_texts_that_look_like_a_place_for_it_stay_what_they_are(text):
    tensors, metadata = {text: torch.arange(3.0), "a": torch.arange(2)}, {text: text, "deep": [{text: [text]}]}
    save_tensors(FILE, tensors, metadata)
    held, told = load_tensors(FILE)
    assert told == metadata
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("large", [False, True])
def test_the_digest_of_all_of_it_is_in_the_file_before_it_gets_its_name(monkeypatch, large):
    monkeypatch.setattr(store, "LARGE", 0 if large else 1 << 30)
    synced = []
    sync = store._sync
    monkeypatch.setattr(store, "_sync", lambda path: synced.append(Path(path).suffix) or sync(path))
    tensors = {"w": torch.randn(1000)}
    save_tensors(FILE, tensors, {"epoch": 2})
    # The last time that the file is synced its digest is in it: then the folder is.
    assert synced == [".tmp"] * (1 + large) + [""]
    text = json.dumps({"version": store.VERSION, "metadata": {"epoch": 2}})
    assert digest_of(tensors, text).encode() in Path(FILE).read_bytes()
    assert load_tensors(FILE)[1] == {"epoch": 2}
