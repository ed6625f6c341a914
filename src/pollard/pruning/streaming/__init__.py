"""Deciding over weights that are never there all at once: scores, masks and rankings, some rows at a time."""

from pollard.pruning.streaming.decision import StreamedDecision, is_streamed
from pollard.pruning.streaming.forecast import Forecast

__all__ = ["Forecast", "StreamedDecision", "is_streamed"]
