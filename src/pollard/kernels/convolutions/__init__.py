"""Convolutions with a sparse weight: what is read where, in which memory, by which kernel."""

__all__: list[str] = []
