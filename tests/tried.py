"""The device that trials run on beside the CPU: the one that `POLLARD_TRIALS` names, or else a pretended one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

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


__all__ = ["DEVICE", "ON_CUDA", "close", "only_cuda", "untuned"]
