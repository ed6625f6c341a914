"""Streams are tried on each instruction set that there is, and on their twin."""

import pytest

from pollard.kernels.code.target import host_isas


@pytest.fixture(params=[*host_isas(), "reference"])
def target(request, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", request.param)
    return request.param


@pytest.fixture(params=host_isas())
def kernels(request, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", request.param)
    return request.param
