"""What moves a topology and chooses in it, by kernels and by their twins: merging, samples, candidates, top-k, transposes."""

__all__: list[str] = []
