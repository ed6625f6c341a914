"""The products with a sparse weight, without autograd: backends, and all that the generated one needs to choose and call a kernel."""

__all__: list[str] = []
