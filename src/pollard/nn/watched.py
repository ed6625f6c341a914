"""Whether somebody wants to see what a layer is given, so that it must be called as it is."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


def is_watched(layer: nn.Module) -> bool:
    """Whether a hook is on `layer`, or on all modules, but for methods of what says itself that it is not `watching`.

    >>> layer = nn.Linear(2, 2)
    >>> is_watched(layer), layer.register_forward_hook(print) and is_watched(layer)
    (False, True)
    """
    if torch.compiler.is_compiling():
        # Who looks away now may look when the compiled code runs.
        return bool(layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001 - no public name
    held = [*(vars(layer)[name] for name in _HOOKS), *(vars(torch_module)[name] for name in _GLOBAL)]
    if not any(held):
        return False
    hooks = (hook for each in held for hook in each.values())
    return any(getattr(getattr(hook, "__self__", None), "watching", True) for hook in hooks)


__all__ = ["is_watched"]
