"""Products are tried on each instruction set that there is."""

import pytest

from pollard.kernels.code.target import host_isas
from pollard.kernels.products import generated, product


@pytest.fixture(params=host_isas())
def isa(request, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", request.param)
    monkeypatch.setenv("POLLARD_TUNING", "default")
    # Tiles, which add in another order, have tests of their own.
    monkeypatch.setattr(generated, "without_tiles", lambda: "tests of vectors")
    # All threads, however little there is to share.
    monkeypatch.setattr(product, "SHARE", 1)
    return request.param
