"""Training images changed at random, a whole batch at a time: shifted, mirrored.

What is drawn for a step depends on the seed and the step alone, so a run that goes on needs no state of it, and each process of
several takes its own part of what was drawn for the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.training.randomness import generator

PAD = 4


def shifted(images: Tensor, drawn: Tensor) -> Tensor:
    """Each image within a frame of 4 pixels of zeros, cut to its size again at the places `drawn` `(images, 2)`, 0 to 8.

    images: `(images, channels, height, width)`. Zero is the mean of what is standardised.
    Source: He et al., Deep residual learning for image recognition, CVPR 2016, section 4.2.

    >>> shifted(torch.ones(1, 1, 2, 2), torch.tensor([[5, 4]]))  # one up: zeros come in from below
    tensor([[[[1., 1.],
              [0., 0.]]]])
    """
    height, width = images.shape[2:]
    framed = functional.pad(images, (PAD, PAD, PAD, PAD))
    # All places to cut at, as a view; only the chosen ones are read.
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), dtype=torch.int64, device=images.device)
    down, right = drawn.to(images.device).unbind(1)
    return windows[each, :, down, right]


def mirrored(images: Tensor, drawn: Tensor) -> Tensor:
    """Images left to right where `drawn` `(images, 1)` is 1, and as they are where it is 0.

    >>> mirrored(torch.tensor([[[[1.0, 2.0]]], [[[1.0, 2.0]]]]), torch.tensor([[0], [1]])).flatten().tolist()
    [1.0, 2.0, 2.0, 1.0]
    """
    chosen = drawn.to(images.device).view(-1, 1, 1, 1).bool()
    return torch.where(chosen, images.flip(3), images)


# Name -> what changes images, how many numbers it draws for each, and from how many.
CHANGES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, int]] = {
    "crop": (shifted, 2, 2 * PAD + 1),
    "flip": (mirrored, 1, 2),
}


def changes_of(augment: str) -> list[str]:
    """The names in `augment`, in their order; raises InvalidInput for one that there is not.

    >>> changes_of("crop,flip"), changes_of("")
    (['crop', 'flip'], [])
    """
    names = [name.strip() for name in augment.split(",")] if augment else []
    if any(name not in CHANGES for name in names) or len(set(names)) < len(names):
        raise InvalidInput(
            f"augment {augment!r}",
            "some of " + ", ".join(CHANGES) + ", separated by commas",
            "Write crop,flip for both, and nothing for none.",
        )
    return names


def draw(augment: str, count: int, seed: int, step: int) -> list[Tensor]:
    """What each change of `augment` draws for the `count` images of a `step`: int64 `(count, numbers)`.

    >>> [each.shape for each in draw("crop,flip", 3, seed=0, step=7)]
    [torch.Size([3, 2]), torch.Size([3, 1])]
    """
    names = changes_of(augment)
    random = generator(seed, f"augment step {step}") if names else None
    return [
        torch.randint(CHANGES[name][2], (count, CHANGES[name][1]), generator=random, dtype=torch.int64, device="cpu")
        for name in names
    ]


def require_images(augment: str, shape: tuple[int, ...]) -> None:
    """Raises InvalidInput where there is something to change, and inputs of `shape` are no images."""
    if augment and len(shape) != 3:
        raise InvalidInput(
            f"augment {augment!r} of inputs of shape {tuple(shape)}",
            "images, (channels, height, width)",
            "Leave augment out, or train a network that takes images.",
        )


def augmented(augment: str, images: Tensor, drawn: list[Tensor]) -> Tensor:
    """`images` after all changes of `augment`, as `drawn`; raises InvalidInput where they are no images."""
    require_images(augment, images.shape[1:])
    for name, numbers in zip(changes_of(augment), drawn, strict=True):
        images = CHANGES[name][0](images, numbers)
    return images
