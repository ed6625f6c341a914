"""The device that trials run on beside the CPU: the one that `POLLARD_TRIALS` names, or else a pretended one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

import pollard

ON_CUDA = os.environ.get("POLLARD_TRIALS") == "cuda"
if ON_CUDA:
    # Its process must not know of the pretended one, which torch would take for the accelerator of autograd.
    DEVICE = torch.device("cuda", 0)
    # Convolutions of ours are in float32, and so are those they are compared with.
    torch.backends.cudnn.allow_tf32 = False
else:
    from pretended import DEVICE

only_cuda = pytest.mark.skipif(not ON_CUDA, reason="a pretended device has no streams, graphs or precision of its own")
untuned = pytest.mark.filterwarnings("ignore:No kernel of Pollard's runs on:pollard.errors.KernelFallback")


def close(there: Tensor, here: Tensor, dtype: torch.dtype | None = None) -> None:
    """What is `there` on the device is what is `here`, but for the order of sums; dtype: of what they were made of."""
    assert there.device == DEVICE
    dtype = dtype or there.dtype
    half = {"rtol": 2e-2, "atol": 1e-2} if dtype in {torch.float16, torch.bfloat16} else {}
    # Sums of a few hundred numbers, several of them one behind the other.
    single = {"rtol": 2e-5, "atol": 2e-5} if ON_CUDA and dtype is torch.float32 else {}
    torch.testing.assert_close(there.cpu(), here, **half, **single)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """On the CPU, the same each time."""
    return torch.randn(*shape, generator=seeded(7)).to(dtype)


def plan_of(model: nn.Module, density: float = 0.3, pattern: str = "unstructured") -> pollard.Plan:
    """Of the largest magnitudes."""
    return pollard.prune(model, "magnitude", None if ":" in pattern else density, pattern=pattern)


def both_ways(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output for `x`, and the gradients of its mean square, in the input and in all parameters."""
    model.zero_grad()
    lead = x.clone().requires_grad_()
    found = model(lead)
    found = found[0] if isinstance(found, tuple) else found
    found.square().mean().backward()
    return [found.detach(), lead.grad, *(each.grad.clone() for each in model.parameters())]


def require_same(model: nn.Module, there: nn.Module, x: Tensor) -> None:
    """`there` does on the device what `model` does on the CPU."""
    expected, found = both_ways(model, x), both_ways(there, x.to(DEVICE))
    for one, other in zip(found, expected, strict=True):
        close(one, other, x.dtype)


__all__ = ["DEVICE", "ON_CUDA", "batch", "close", "only_cuda", "plan_of", "require_same", "seeded", "untuned"]
