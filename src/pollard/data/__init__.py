"""Real data sets: fetched by pinned version and sha256, cached, never vendored."""

from __future__ import annotations

from pollard.data.datasets import DataSet, load
from pollard.data.fetching import CatalogueEntry, catalogue, fetch

__all__ = ["CatalogueEntry", "DataSet", "catalogue", "fetch", "load"]
