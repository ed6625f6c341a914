"""Made by scripts/stub.py from the methods' own builders: change those, then run it."""

from collections.abc import Callable
from inspect import Signature
from pollard.formats.pattern import PatternChoice
from pollard.nn.surgery import Storage
from pollard.selection import LayerFilter
from pollard.training.methods.gse import Guide
from pollard.training.sparsifier import Sparsifier
from torch import nn
from torch.optim import Optimizer
from typing import Any

__all__ = ["acdc", "dsd", "gmp", "granet", "gse", "mest", "rigl", "set_", "snfs", "sparse_momentum", "srigl", "static", "top_kast"]

def signature_of(name: str) -> Signature: ...
def shorthand(name: str) -> Callable[..., Sparsifier] | None: ...
def acdc(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    dense_until: float = 0.1,
    sparse_from: float = 0.85,
    allocation: str | None = None,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Alternating compressed and decompressed training: all weights train, then only the largest `|w|`, and so on in turn."""

def dsd(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    sparse_from: float = 0.3333333333333333,
    dense_from: float = 0.6666666666666666,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Dense, sparse, dense: train all, then only the largest `|w|`, then all again, those that come back from zero."""

def gmp(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    first: float = 0.0,
    until: float = 0.75,
    start_density: float = 1.0,
    curve: str = "cubic",
    allocation: str | None = None,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Gradual magnitude pruning: the smallest `|w|` go, a few every 100 steps, along a cubic; nothing comes back."""

def granet(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    fraction: float = 0.5,
    until: float = 0.75,
    start_density: float = 0.5,
    curve: str = "cubic",
    allocation: str | None = None,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Gradual pruning with neuroregeneration: prune to a density that falls along a cubic, then exchange as RigL does."""

def gse(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    fraction: float = 0.2,
    until: float = 0.6,
    candidates: float = 1.0,
    guide: Guide = "grabo",
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Guided stochastic exploration: of a random set of candidates as large as what is kept, the largest `|dL/dw|` come."""

def mest(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    epoch: int | None = None,
    every: int = 0,
    margin: float = 0.02,
    soft: bool = False,
    strength: float = 0.01,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Memory-economic sparse training: the lowest `|w| + strength * |dL/dw|` go, others come at random, no dense gradient."""

def rigl(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    fraction: float = 0.3,
    until: float = 0.75,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Rigging the lottery: every 100 steps the smallest `|w|` go and the largest `|dL/dw|` come, at zero."""

def set_(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    epoch: int | None = None,
    every: int = 0,
    fraction: float = 0.3,
    signed: bool = True,
    deviation: float = 0.1,
    annealed: bool = False,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Sparse evolutionary training: once an epoch the 30 % closest to zero go, as many others come at random."""

def snfs(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    fraction: float = 0.3,
    until: float = 0.75,
    decay: float = 0.9,
    window: int = 0,
    dense_memory: bool = False,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Grow where the exponential mean of the dense gradient is large; else as RigL."""

def sparse_momentum(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    epoch: int | None = None,
    every: int = 0,
    fraction: float = 0.5,
    decay: float = 0.9,
    window: int = 0,
    dense_memory: bool = False,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Once an epoch half of each layer goes, and layers with large momentum get more of it back, where momentum is large."""

def srigl(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    fraction: float = 0.3,
    until: float = 0.75,
    salient: float = 0.3,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Structured RigL: a constant fan-in, and no neuron that has too few salient weights."""

def static(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """What is kept first is kept: sparse training without updates."""

def top_kast(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    density: float | None = None,
    steps: int = 0,
    every: int = 0,
    margin: float = 0.0,
    fraction: float = 0.3,
    penalty: float = 0.0001,
    dense_memory: bool = False,
    storage: Storage = "compressed",
    criterion: str | None = None,
    batch: Any = None,
    allocation: str | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    seed: int | None = None,
    own_steps: bool = False,
) -> Sparsifier:
    """Train a set B of weights, of which the forward pass reads the largest, A; both are chosen anew every 100 steps."""
