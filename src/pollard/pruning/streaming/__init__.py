"""Deciding over weights that are never there all at once: scores, masks and rankings, some rows at a time."""

from pollard.pruning.streaming.decision import StreamedDecision, is_streamed

__all__ = ["StreamedDecision", "is_streamed"]
