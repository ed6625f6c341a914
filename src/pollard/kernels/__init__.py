"""How a sparse matrix is multiplied, `products`, and how its topology moves, `indices`, without autograd; on one `code` generator."""

__all__: list[str] = []
