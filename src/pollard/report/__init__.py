"""Numbers and their looks: what things take, and how that is shown."""

from __future__ import annotations

from pollard.report.measure import ModuleBytes, module_bytes, peak_rss_bytes, rss_bytes

__all__ = ["ModuleBytes", "module_bytes", "peak_rss_bytes", "rss_bytes"]
