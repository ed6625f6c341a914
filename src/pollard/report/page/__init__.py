"""The points of a study as one HTML page that needs no network: plots to point at, tables, and what to cite."""

from __future__ import annotations

from pollard.report.page.build import study_page

__all__ = ["study_page"]
