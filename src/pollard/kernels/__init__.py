"""How a sparse matrix is multiplied, without autograd: generated kernels, and their slow twins in plain torch."""

__all__: list[str] = []
