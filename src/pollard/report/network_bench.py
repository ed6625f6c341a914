"""Whole networks in inference: sparse beside dense in all its ways and in bfloat16, in turns in one process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pollard.report.bench import ROUNDS
from pollard.report.dense_ways import NN_LINEAR, DenseWays
from pollard.report.machine import machine
from pollard.report.network_contest import DTYPES, Pruned, Tell, dense_ways, pruned, require_dtypes, silent, verified
from pollard.report.networks import Workload
from pollard.report.timing import interleaved, on_threads

FLOAT32, BFLOAT16 = DTYPES


@dataclass(frozen=True)
class NetworkRecord:
    """One sparse network, timed: milliseconds are medians over the rounds, `spread_ms` is [fastest, slowest] of each contender.

    inputs: shapes of the tensors that the network was called on. share: of the dense network's parameters, what sparse layers
    make up. dense_ms: the dense network as it is, in the same precision. best_dense_ms: the fastest with its linear layers
    swapped for another of torch's ways, itself included, named by `best_dense`. fp32_dense_ms, bf16_dense_ms: the same in float32
    and in bfloat16, whatever the precision of the sparse network.
    `speedup`, `nn_linear_speedup`, `fp32_speedup` and `bf16_speedup` are these over `ms`; `dense_wins` marks a network that
    dense wins in the same precision.
    """

    network: str
    op: str
    inputs: list[list[int]]
    pattern: str
    dtype: str
    density: float
    share: float
    threads: int
    ms: float
    dense_ms: float
    best_dense_ms: float
    best_dense: str
    fp32_dense_ms: float
    fp32_dense: str
    bf16_dense_ms: float
    bf16_dense: str
    speedup: float
    nn_linear_speedup: float
    fp32_speedup: float
    bf16_speedup: float
    dense_wins: bool
    rounds: int
    target: str
    machine: dict[str, str] = field(default_factory=dict)
    spread_ms: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)


def measure_network(
    workload: Workload,
    *,
    patterns: Sequence[str] = ("unstructured",),
    densities: Sequence[float] = (0.1,),
    dtypes: Sequence[str] = ("float32",),
    threads: int = 1,
    rounds: int = ROUNDS,
    compiled: bool = False,
    tell: Tell = silent,
) -> list[NetworkRecord]:
    """Times the network of `workload` in inference, pruned by magnitude to each pattern and density, in each precision.

    One that is sparse already is timed as it is. All contenders take turns, dense ones among them, once they are verified.
    compiled: torch.compile is one of the dense ways. tell: takes what is being done, for a progress bar.
    Raises KernelError where outputs are off by more than rounding explains, InvalidInput for what cannot be measured.
    """
    require_dtypes(dtypes)
    with on_threads(threads):
        tell("pruning")
        dense, kept = pruned(workload, patterns, densities)
        ways: dict[str, DenseWays] = {}
        for dtype in DTYPES:
            tell(f"verifying dense {dtype}")
            ways[dtype], _ = dense_ways(dense, dtype, compiled=compiled)
        tell("verifying sparse networks")
        sparse = [(each, dtype, verified(each.contender(dtype))) for each in kept for dtype in dtypes]
        contenders = [one for each in ways.values() for one in each.whole.values()] + [one for *_, one in sparse]
        tell(f"timing {len(contenders)} contenders in turns")
        samples = interleaved({one.name: one.call for one in contenders}, rounds)
    timed = _Timed(workload, threads, ways, samples)
    return [timed.record(each, dtype, one.name) for each, dtype, one in sparse]


@dataclass(frozen=True)
class _Timed:
    """What was timed in one run."""

    workload: Workload
    threads: int
    ways: Mapping[str, DenseWays]
    samples: Mapping[str, Sequence[float]]

    def record(self, pruned: Pruned, dtype: str, name: str) -> NetworkRecord:
        """That of the sparse network, timed under `name`."""
        median = {name: statistics.median(times) for name, times in self.samples.items()}
        best = {each: ways.best(median) for each, ways in self.ways.items()}
        (best_ms, best_way), (fp32_ms, fp32_way), (bf16_ms, bf16_way) = best[dtype], best[FLOAT32], best[BFLOAT16]
        ms, dense_ms = median[name], median[self.ways[dtype].whole[NN_LINEAR].name]
        beside = [one.name for ways in self.ways.values() for one in ways.whole.values()]
        on = machine()
        return NetworkRecord(
            network=self.workload.name,
            op="inference",
            inputs=self.workload.input_shapes,
            pattern=pruned.pattern,
            dtype=dtype,
            density=pruned.density,
            share=pruned.share,
            threads=self.threads,
            ms=ms,
            dense_ms=dense_ms,
            best_dense_ms=best_ms,
            best_dense=best_way,
            fp32_dense_ms=fp32_ms,
            fp32_dense=fp32_way,
            bf16_dense_ms=bf16_ms,
            bf16_dense=bf16_way,
            speedup=best_ms / ms,
            nn_linear_speedup=dense_ms / ms,
            fp32_speedup=fp32_ms / ms,
            bf16_speedup=bf16_ms / ms,
            dense_wins=best_ms < ms,
            rounds=len(self.samples[name]),
            target=on["kernels"],
            machine=on,
            spread_ms={one: [min(self.samples[one]), max(self.samples[one])] for one in (name, *beside)},
        )
