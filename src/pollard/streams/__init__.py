"""Random numbers as a function of (seed, layer, row, column): any block of an initial weight, again at will, the same everywhere."""

from pollard.streams.stream import Stream

__all__ = ["Stream"]
