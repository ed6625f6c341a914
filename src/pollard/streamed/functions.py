"""Functions of torch that a streamed weight is given to: products, and what asks for its memory."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would load a compiler
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.streamed.drawn import note_truncated, truncation
from pollard.streamed.products import Convolution, Dense, Operand, product
from pollard.streamed.tensor import StreamedTensor, function, unserved

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


@function(functional.linear)
@_disable_dynamo
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's own name
    streamed = _streamed(input, weight, bias)
    x = input if input.dim() > 1 else input.unsqueeze(0)
    made = product(Operand(Dense(), streamed.source, streamed.like), x, weight, bias)
    return made if input.dim() > 1 else made.squeeze(0)


def _convolution(spatial: int) -> Any:
    @_disable_dynamo
    def convolved(  # noqa: PLR0917 - torch's own order
        input: Tensor,  # noqa: A002 - torch's own name
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        streamed = _streamed(input, weight, bias)
        if groups != 1 or isinstance(padding, str):
            raise InvalidInput(
                f"a convolution of a streamed weight with groups={groups} and padding={padding!r}",
                "one group, and padding in numbers",
                "Write the padding as a number, or make this layer outside pollard.never_dense.",
            )
        sizes = [(each,) * spatial if isinstance(each, int) else tuple(each) for each in (stride, padding, dilation)]
        call = Convolution(tuple(weight.shape[1:]), *(each * spatial if len(each) == 1 else each for each in sizes))
        x = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        made = product(Operand(call, streamed.source, streamed.like), x, weight, bias)
        return made if input.dim() == spatial + 2 else made.squeeze(0)

    return convolved


for _called, _axes in _CONVOLUTIONS.items():
    function(_called)(_convolution(_axes))


@function(Tensor.is_meta.__get__)  # type: ignore[attr-defined]  # what torch calls it
def _is_meta(weight: Tensor) -> bool:
    # Torch's truncated normal numbers draw again what falls outside, all at once; it passes over what has no numbers.
    bounds = truncation(sys._getframe(2))  # noqa: SLF001 - nothing else tells who asks
    if bounds is not None:
        note_truncated(weight, *bounds)
    return bounds is not None


@function(Tensor.data.__set__)  # type: ignore[attr-defined]  # what torch calls it
def _set_data(weight: StreamedTensor, value: Tensor) -> None:
    # As modules do that are converted. Torch exchanges what it knows of; the numbers are ours to exchange.
    if not isinstance(value, StreamedTensor):
        raise unserved("memory in the place", weight)
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's documentation has it
        weight.data = value
    weight.source = value.source


@function(Tensor.share_memory_)
def _share(weight: Tensor) -> Tensor:
    return weight  # whoever has it makes the same numbers


@function(Tensor.to_dense)
def _to_dense(weight: StreamedTensor, *args: Any, **kwargs: Any) -> Tensor:
    return weight.to_dense(*args, **kwargs)


# Torch's own would hand out the memory of nothing, and crash.
@function(Tensor.data_ptr, Tensor.numpy, Tensor.storage, Tensor.tolist, Tensor.untyped_storage)
def _memory(weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    del args, kwargs
    raise unserved("memory", weight)


def _streamed(given: Tensor, weight: Tensor, bias: Tensor | None) -> StreamedTensor:
    for each in (given, bias):
        if isinstance(each, StreamedTensor):
            raise unserved("a product with another weight", each)
    assert isinstance(weight, StreamedTensor)
    return weight


__all__: list[str] = []
