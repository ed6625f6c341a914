"""Modules that are a product in another form: nn.Bilinear, and the transposed linear layer of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pollard.composites.composite import Composite, biased, composite


@composite(nn.Bilinear)
class ComposedBilinear(Composite):
    """``y_o = x^T A_o z + b_o``: a linear layer of all products of the two inputs' features."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """As the module it was made of, for `(..., in1)` and `(..., in2)`."""
        y: Tensor = self.linear((input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2))
        # torch's autocast leaves it alone.
        return biased(y.to(input1.dtype), self._parameters.get("bias"))


@composite("transformers.pytorch_utils.Conv1D")
class ComposedConv1D(Composite):
    """``y = x W + b`` with W `(in, out)`, as GPT-2 has it: an ordinary linear layer of the transpose."""

    def matrix(self, part: str, tensor: Tensor) -> Tensor:
        """The transpose."""
        del part
        return tensor.t()

    def tensor(self, name: str, matrices: Mapping[str, Tensor]) -> Tensor:
        """And back."""
        del name
        return matrices["linear"].t()

    def forward(self, x: Tensor) -> Tensor:
        """As the module it was made of, for `(..., in)`."""
        return biased(self.linear(x), self.bias)


__all__ = ["ComposedBilinear", "ComposedConv1D"]
