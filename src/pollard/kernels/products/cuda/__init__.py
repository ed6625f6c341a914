"""Products on CUDA: by kernels that Triton compiles, and by torch's dense ones."""

__all__: list[str] = []
