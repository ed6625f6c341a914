"""How a kernel is generated, compiled and run: the small SIMD layer, the emitters, the compiler, calls on torch's threads."""

__all__: list[str] = []
