"""The network that SET's paper trains on CIFAR-10, and its images.

3072-4000-1000-4000-10 with SReLU and dropout 0.3; 20 (in + out) / (in out) of the hidden layers' weights at random, 382
thousand, 1.9 %, the last layer dense; values as a dense layer would draw them (Glorot's uniform); batches of 100; each pixel
standardised; images turned by up to 10 degrees, shifted by up to a tenth, mirrored, nearest pixels.
Source: Mocanu et al. 2018; code: dcmocanu, sparse-evolutionary-artificial-neural-networks, SET-MLP-Keras-Weights-Mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard import data
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.training import Examples, generator
from pollard.training.placing import sent

WIDTHS = (3072, 4000, 1000, 4000, 10)
EPSILON, BATCH, DROPOUT = 20, 100, 0.3
DEGREES, SHIFT = 10.0, 0.1

# Where nothing compiles, it is a dozen passes. Each shape, each layout, with gradients and without, is compiled by itself.
torch._dynamo.config.suppress_errors = True  # noqa: SLF001 - no public name
torch._dynamo.config.recompile_limit = 32  # noqa: SLF001


def bent(x: Tensor, left: Tensor, below: Tensor, width: Tensor, above: Tensor) -> Tensor:
    """The identity between `left` and `left + |width|`, slopes `below` and `above` beyond."""
    right = left + width.abs()
    return x + (x - left).clamp_max(0) * (below - 1) + (x - right).clamp_min(0) * (above - 1)


@cache
def bent_at_once() -> Callable[..., Tensor]:
    """The same in one pass over what would be a dozen."""
    return torch.compile(bent)


class Dropout(nn.Module):
    """torch's, with a generator of its own.

    On the CPU by 16 bits a number: drawing one number for each took longer than all the rest of a sparse step.
    """

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, features)`, the same shape."""
        if not self.training:
            return x
        if not x.is_cpu:
            return x * torch.empty_like(x).bernoulli_(1 - DROPOUT, generator=self.draw).div_(1 - DROPOUT)
        bits = (
            torch.empty(-(-x.numel() // 4), dtype=torch.int64)
            .random_(-(2**63), None, generator=self.draw)
            .view(torch.int16)
        )
        kept = bits[: x.numel()].view(x.shape[1], x.shape[0]).t() >= round(DROPOUT * 2**16) - 2**15
        return x * kept.float().div_(1 - DROPOUT)


class SReLU(nn.Module):
    """Where each neuron bends, and its slopes beyond, are learned. Source: Jin et al. 2016."""

    def __init__(self, features: int, draw: torch.Generator) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(features))
        self.below = nn.Parameter(torch.rand(features, generator=draw))
        self.width = nn.Parameter(5 * torch.rand(features, generator=draw))
        self.above = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, features)`, the same shape."""
        # Without gradients a GPU has the dozen passes done sooner than a compiler its work.
        bend = bent_at_once() if self.training or x.is_cpu else bent
        y: Tensor = bend(x, self.left, self.below, self.width, self.above)
        return y


def layer(method: str, inputs: int, outputs: int, draw: torch.Generator) -> nn.Module:
    """One layer, biases 0: dense, or with an Erdos-Renyi topology."""
    scale = math.sqrt(6 / (inputs + outputs))
    made: nn.Linear | SparseLinear
    if method == "dense" or outputs == WIDTHS[-1]:
        made = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        nn.init.uniform_(made.weight, -scale, scale, generator=draw)
    else:
        share = EPSILON * (inputs + outputs) / (inputs * outputs)
        kept = (torch.rand(inputs * outputs, generator=draw) < share).nonzero().flatten()
        topology = Topology.from_positions((outputs, inputs), "unstructured", kept)

        def values(topology: Topology, draw: torch.Generator | None) -> Tensor:
            return scale * (2 * torch.rand(topology.nnz, generator=draw) - 1)

        made = SparseLinear(inputs, outputs, topology, initialiser=values, generator=draw)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made


def network(method: str, seed: int, dropout: torch.Generator) -> nn.Sequential:
    """SReLU and dropout between the layers."""
    draw, parts = generator(seed, "weights"), list[nn.Module]()
    for inputs, outputs in pairwise(WIDTHS):
        parts += [layer(method, inputs, outputs, draw), SReLU(outputs, draw), Dropout(dropout)]
    return nn.Sequential(nn.Flatten(), *parts[:-2])


def examples(device: torch.device) -> tuple[Examples, Examples]:
    """Images `(count, 3, 32, 32)` with each pixel of mean 0 and deviation 1 over the training images, and their classes."""
    whole = data.load("cifar-10")
    train_x, test_x = (x.reshape(len(x), -1).float() for x in (whole.train_x, whole.test_x))
    mean, deviation = train_x.mean(0), train_x.std(0, correction=0)
    train_x, test_x = ((x.sub_(mean).div_(deviation)).view(-1, 3, 32, 32) for x in (train_x, test_x))
    return Examples(train_x.to(device), whole.train_y.to(device)), Examples(test_x.to(device), whole.test_y.to(device))


def turns(counts: Iterable[int], draw: torch.Generator) -> Tensor:
    """By how much the images of batches of such sizes are turned, shifted and mirrored: `(all, 2, 3)`."""
    drawn = [(torch.rand(3, count, generator=draw), torch.randint(2, (count,), generator=draw)) for count in counts]
    angle, down, right = (2 * torch.cat([each for each, _ in drawn], 1) - 1) * torch.tensor(
        [[math.radians(DEGREES)], [2 * SHIFT], [2 * SHIFT]]
    )
    mirror = 1 - 2.0 * torch.cat([each for _, each in drawn])
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos * mirror, -sin, right], 1), torch.stack([sin * mirror, cos, down], 1)]
    return torch.stack(rows, 1)


def moved(images: Tensor, by: Tensor) -> Tensor:
    """Each turned, shifted and mirrored; beyond the edge its nearest pixel goes on."""
    grid = functional.affine_grid(sent(by, images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="border", align_corners=False)


def batches(on: Examples, seed: int, epoch: int, begin: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch from a batch on, in an order and with changes of its own."""
    draw = generator(seed, f"epoch {epoch}")
    order = torch.randperm(len(on.x), generator=draw).split(BATCH)
    by = turns(map(len, order), draw).split(BATCH)
    together = 1 if on.x.is_cpu else 100  # a GPU waits for each call
    for first in range(begin, len(order), together):
        some = slice(first, first + together)
        chosen = sent(torch.cat(order[some]), on.x.device)
        yield from zip(moved(on.x[chosen], torch.cat(by[some])).split(BATCH), on.y[chosen].split(BATCH), strict=True)
