"""Deciding over weights that are never there all at once: scores, masks and rankings, some rows at a time."""
