from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from pollard.errors import SettingsError
from pollard.settings import RESULTS, TARGETS, TUNING, Settings


def test_an_empty_environment_gives_the_defaults(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert Settings.read({}) == Settings(
        target="auto",
        tuning="measure",
        cache=Path("/somewhere/.cache/pollard"),
        data=Path("/somewhere/.cache/pollard/data"),
    )


def test_an_empty_variable_counts_as_unset():
    assert Settings.read({"POLLARD_TARGET": "", "POLLARD_TUNING": "", "POLLARD_CACHE": ""}) == Settings.read({})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tuning", TUNING)
def test_every_choice_is_taken(target, tuning):
    settings = Settings.read({"POLLARD_TARGET": target, "POLLARD_TUNING": tuning})
    assert (settings.target, settings.tuning) == (target, tuning)


@pytest.mark.parametrize(
    "name, choices", [("POLLARD_TARGET", TARGETS), ("POLLARD_TUNING", TUNING), ("POLLARD_RESULTS", RESULTS)]
)
def test_any_other_choice_is_refused_with_those_there_are(name, choices):
    with pytest.raises(SettingsError, match=", ".join(choices)) as caught:
        Settings.read({name: "best"})
    assert f"{name}='best'" in caught.value.got


def test_folders_follow_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert Settings.read({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/pollard")
    assert Settings.read({"POLLARD_CACHE": "/c"}).data == Path("/c/data")
    both = Settings.read({"POLLARD_CACHE": "~/c", "POLLARD_DATA": "~/d"})
    assert (both.cache, both.data) == (Path("/somewhere/c"), Path("/somewhere/d"))


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "avx2")
    assert Settings.read().target == "avx2"


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Settings.read({}).target = "avx2"
