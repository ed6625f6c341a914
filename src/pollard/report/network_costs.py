"""Where the time of a sparse network goes: layer by layer and the rest of it, beside the dense network."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pollard.composites import Composite
from pollard.composites.convolution import ComposedConv
from pollard.kernels.convolutions.explanation import explain_run as explain_convolution
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products.backend import GENERATED, choose
from pollard.kernels.products.explanation import Explanation, explain_run
from pollard.nn.linear import SparseLinear
from pollard.report.dense_ways import NN_LINEAR
from pollard.report.machine import machine
from pollard.report.network_contest import DTYPES, Tell, dense_ways, pruned, require_dtypes, silent, verified
from pollard.report.networks import Workload
from pollard.report.timing import interleaved

SPARSE, REST = "sparse", None
ROUNDS = 7
Costs = dict[str, float]


@dataclass(frozen=True)
class Matrix:
    """A sparse weight, the rows of the batch that it is multiplied with, and by which kernel, for what reason."""

    name: str
    shape: list[int]
    rows: int
    density: float
    kernel: str
    reason: str


@dataclass(frozen=True)
class LayerCost:
    """A sparse layer: its matrices, one where it is linear, and the milliseconds of a call of the network that it takes.

    ms: of the `sparse` layer, and of the dense ones, by precision.
    """

    name: str
    matrices: list[Matrix]
    ms: Costs


@dataclass(frozen=True)
class NetworkCosts:
    """A sparse network beside the dense one: milliseconds by layer, in all, and of what is in no sparse layer.

    The keys of costs are `sparse` and the precisions of the dense network; `dense` says by which of torch's ways each of
    them computes its linear layers, the fastest in each. rest: of a call, less its layers. total: layers and rest.
    """

    network: str
    inputs: list[list[int]]
    pattern: str
    dtype: str
    density: float
    share: float
    threads: int
    dense: dict[str, str]
    layers: list[LayerCost]
    rest: Costs
    total: Costs
    machine: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The costs as plain JSON values."""
        return asdict(self)


def network_costs(
    workload: Workload,
    *,
    pattern: str = "unstructured",
    density: float = 0.1,
    dtype: str = "float32",
    rounds: int = ROUNDS,
    tell: Tell = silent,
) -> NetworkCosts:
    """The costs of the network of `workload` in inference, pruned by magnitude, or as it is where it is sparse already.

    Medians over calls in turns, on torch's threads, of the sparse network in `dtype` and of the dense one in each precision,
    the outputs of all of them verified. Raises as `measure_network` does.
    """
    require_dtypes([dtype])
    tell("pruning")
    dense, [kept] = pruned(workload, [pattern], [density])
    sparse = verified(kept.contender(dtype)).call
    assert isinstance(sparse, Workload)
    runs, ways = {SPARSE: sparse}, {}
    for each in DTYPES:
        tell(f"verifying dense {each}")
        runs[each], ways[each] = _fastest(dense, each)
    names = _layers(sparse.model)
    profiles = {key: _Profile(run, names) for key, run in runs.items()}
    tell("timing layer by layer")
    interleaved(profiles, rounds)
    layers = [
        LayerCost(name, parts, {key: profile.median(name) for key, profile in profiles.items()})
        for name, parts in _matrices(sparse, names).items()
    ]
    rest = {key: profile.median(REST) for key, profile in profiles.items()}
    return NetworkCosts(
        network=workload.name,
        inputs=workload.input_shapes,
        pattern=kept.pattern,
        dtype=dtype,
        density=kept.density,
        share=kept.share,
        threads=torch.get_num_threads(),
        dense=ways,
        layers=layers,
        rest=rest,
        total={key: sum(layer.ms[key] for layer in layers) + left for key, left in rest.items()},
        machine=machine(),
    )


def _fastest(dense: Workload, dtype: str) -> tuple[Workload, str]:
    ways, runs = dense_ways(dense, dtype)
    if len(runs) == 1:
        return runs[NN_LINEAR], NN_LINEAR
    samples = interleaved({way: one.call for way, one in ways.whole.items()}, 3)
    best = min(samples, key=lambda way: statistics.median(samples[way]))
    return runs[best], best


def _layers(model: nn.Module) -> list[str]:
    """The modules that are sparse layers, by the names that they have in the dense network too: of a convolution, not of its matrix."""
    paths = {name: name.rpartition(".")[0] for name, each in model.named_modules() if isinstance(each, SparseLinear)}
    return list(
        dict.fromkeys(
            parent if isinstance(model.get_submodule(parent), Composite) else name for name, parent in paths.items()
        )
    )


class _Profile:
    """A call that keeps the milliseconds that it spends within the modules of `names`, and in the rest of the network."""

    def __init__(self, workload: Workload, names: list[str]) -> None:
        self.workload, self.names = workload, names
        self.runs: list[dict[str | None, float]] = []

    def __call__(self) -> None:
        # What is seen is a network in use, not the caches that another left behind.
        self.workload()
        with _watched({name: self.workload.model.get_submodule(name) for name in self.names}) as spent:
            started = perf_counter()
            self.workload()
            total = 1e3 * (perf_counter() - started)
        # Of one call: on a busy machine neighbouring calls differ by more than the rest is.
        self.runs.append(spent | {REST: total - sum(spent.values())})

    def median(self, name: str | None) -> float:
        """Of what a call spends in a module, or in the rest."""
        return statistics.median(spent[name] for spent in self.runs)


@contextmanager
def _watched(modules: Mapping[str, nn.Module]) -> Iterator[Costs]:
    """Milliseconds within each of `modules` while it lasts."""
    spent, started = dict.fromkeys(modules, 0.0), dict.fromkeys(modules, 0.0)

    def enter(name: str, *_: object) -> None:
        started[name] = perf_counter()

    def leave(name: str, *_: object) -> None:
        spent[name] += 1e3 * (perf_counter() - started[name])

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(enter, name)))
            hooks.enter_context(module.register_forward_hook(partial(leave, name)))
        yield spent


def _matrices(sparse: Workload, names: list[str]) -> dict[str, list[Matrix]]:
    """The matrices of each layer that one call multiplies with, seen at work."""
    found: dict[str, list[Matrix]] = {name: [] for name in names}
    modules = dict(sparse.model.named_modules())
    convolved = {name: own for name in names if _convolves(own := modules[name])}

    def seen(name: str, layer: SparseLinear, rows: int, told: Explanation) -> None:
        matrix = Matrix(name, list(layer.topology.shape), rows, layer.density, told.choice, told.reason)
        owner = name if name in found else name.rpartition(".")[0]
        if name not in {each.name for each in found[owner]}:
            found[owner].append(matrix)

    def multiplied(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, SparseLinear)
        x = args[0].reshape(-1, layer.in_features)
        seen(
            name,
            layer,
            len(x),
            explain_run(
                "forward", x, layer.topology, layer.values.dtype, activation=layer.activation, rows=args[0].dim() != 2
            ),
        )

    def moved(name: str, whole: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(whole, ComposedConv)
        layer, window = whole.linear, whole.window()
        assert isinstance(layer, SparseLinear)
        told = explain_convolution(whole.images(args[0]), layer.topology, Window(*window), layer.values.dtype)
        seen(f"{name}.linear", layer, y.numel() // y.shape[1], told)

    with ExitStack() as hooks:
        for name, layer in modules.items():
            if name in convolved:
                hooks.enter_context(layer.register_forward_hook(partial(moved, name)))
            elif isinstance(layer, SparseLinear) and name.rpartition(".")[0] not in convolved:
                hooks.enter_context(layer.register_forward_pre_hook(partial(multiplied, name)))
        sparse()
    return found


def _convolves(layer: nn.Module) -> bool:
    """Whether it is a convolution that kernels compute."""
    if not isinstance(layer, ComposedConv) or not Window(*layer.window()).planar:
        return False
    held = layer.linear.values
    return choose(held.device, held.dtype)[0] is GENERATED
