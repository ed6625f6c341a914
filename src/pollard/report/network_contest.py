"""Who competes over a whole network: itself as it is, with its linear layers in torch's other ways, and sparse."""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pollard.arguments import require_one_of
from pollard.composites import matrices, put, shared_copy
from pollard.coverage import Coverage
from pollard.errors import InvalidInput, KernelError
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.nn.folding import fold_norms_
from pollard.nn.surgery import densify_, sparse_layers, sparsify_
from pollard.pruning.batches import mapped
from pollard.pruning.decision import prune
from pollard.report.case import Contender, Reference
from pollard.report.dense_ways import NN_LINEAR, SLOWER, DenseWays, PreparedLinear, inference_ways
from pollard.report.networks import Workload, outputs
from pollard.report.timing import seconds_once
from pollard.selection import linear_layers

# Takes what is being done, for whoever waits.
Tell = Callable[[str], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHANNELS_LAST = "channels last"
COMPILED = "torch.compile"
# Relative to the norm of the outputs: what many layers make of roundings of one number, and of each.
ALLOWED = {"float32": 1e-3, "bfloat16": 16 * torch.finfo(torch.bfloat16).eps}


@dataclass(frozen=True)
class Pruned:
    """A network of which some is kept, in float32, and what it computes.

    pattern, density: of all its sparse layers together. share: of the parameters of the dense network, what they make up.
    """

    pattern: str
    density: float
    share: float
    sparse: Workload
    results: Mapping[str, Tensor]

    @classmethod
    def by_magnitude(cls, dense: Workload, pattern: str, density: float) -> Pruned:
        """`dense`, pruned in one shot to the same density in each layer; where `pattern` does not fit, single weights are kept.

        Layers that share their weight with another module stay dense.
        Raises InvalidInput or PatternError for what cannot be kept, NothingMatched where there is nothing to prune.
        """
        rule, shared = Pattern.parse(pattern), Counter(map(id, _held(dense.model)))
        linear = matrices(dense.model)
        unfit = [name for name, each in linear.items() if not rule.fits((each.out_features, each.in_features))]
        plan = prune(
            dense.model,
            "magnitude",
            density,
            allocation="uniform",
            pattern={"*": rule} | dict.fromkeys(unfit, Pattern()),
            layers=lambda _, layer: all(shared[id(each)] <= 1 for each in layer.parameters()),
        )
        return cls._keeping(dense, plan, pattern, density)

    @classmethod
    def as_it_is(cls, dense: Workload, plan: Mapping[str, Topology]) -> Pruned:
        """`dense` with what `plan` keeps of it."""
        patterns = sorted({str(topology.pattern) for topology in plan.values()})
        return cls._keeping(dense, plan, " + ".join(patterns), Coverage.of(dense.model, plan).density)

    @classmethod
    def _keeping(cls, dense: Workload, plan: Mapping[str, Topology], pattern: str, density: float) -> Pruned:
        share = Coverage.of(dense.model, plan).share
        sparse = dense.of(sparsify_(shared_copy(dense.model, next(iter(plan))), plan))
        again = dense.of(densify_(shared_copy(sparse.model, next(iter(plan)))))
        results = outputs(again())
        _fold(sparse.model)
        return cls(pattern, density, share, sparse, results)

    def contender(self, dtype: str) -> Contender:
        """It in `dtype`, to be held against its dense form in float32."""
        own = self.sparse if dtype == "float32" else self.sparse.to(DTYPES[dtype])
        return Contender(
            f"pollard {self.pattern} {self.density:g} {dtype}", own, outputs, _reference(self.results, dtype)
        )


def pruned(workload: Workload, patterns: Sequence[str], densities: Sequence[float]) -> tuple[Workload, list[Pruned]]:
    """The dense network in float32, and it pruned to each of `patterns` and `densities`; or as it is, where it is sparse.

    Norms are folded in both, where it can be seen what they read, and activations fused, where layers are sparse.
    """
    dense = workload.to(torch.float32)
    kept = {name: layer.topology for name, layer in sparse_layers(dense.model).items()}
    if kept:
        densify_(dense.model)
    _fold(dense.model)
    if kept:
        return dense, [Pruned.as_it_is(dense, kept)]
    return dense, [Pruned.by_magnitude(dense, pattern, density) for pattern in patterns for density in densities]


def _fold(model: nn.Module) -> None:
    with suppress(InvalidInput):  # no part of it can be traced: it stays as it is
        fold_norms_(model)


def silent(_: str) -> None:
    """Tells nobody what is being done."""


def require_dtypes(dtypes: Iterable[str]) -> None:
    """Raises InvalidInput for a precision that networks are not measured in."""
    for dtype in dtypes:
        require_one_of("dtype of a network", dtype, DTYPES)


def dense_ways(dense: Workload, dtype: str, *, compiled: bool = False) -> tuple[DenseWays, dict[str, Workload]]:
    """`dense` in `dtype`, each way that may be the fastest as a contender, and what it runs: `nn.Linear`, and all linear layers swapped for another way.

    compiled: torch.compile takes part, with weights frozen. Raises InvalidInput where it finds no compiler, or where outputs
    differ from call to call, KernelError where a way is off.
    """
    own = dense if dtype == "float32" else dense.to(DTYPES[dtype])
    reference = _reference(_steady(dense), dtype)
    makers: dict[str, Callable[[], Workload]] = {NN_LINEAR: lambda: own}
    if linear_layers(own.model):
        makers |= {way: partial(_swapped, own, way) for way in inference_ways(DTYPES[dtype])}
    if any(isinstance(each, nn.Conv2d) for each in own.model.modules()):
        makers[CHANNELS_LAST] = partial(_channels_last, own)
    if compiled:
        makers[COMPILED] = partial(_compiled, own)
    seconds, found = {}, {}
    for way, make in makers.items():
        run = make()
        one = verified(Contender(f"{dtype} {way}", run, outputs, reference))
        seconds[way], found[way] = seconds_once(one.call), (one, run)
        # Let go at once: each holds the weights another time.
        limit = SLOWER * min(seconds.values())
        found = {name: held for name, held in found.items() if name == NN_LINEAR or seconds[name] < limit}
    return DenseWays({way: one for way, (one, _) in found.items()}), {way: run for way, (_, run) in found.items()}


def _channels_last(own: Workload) -> Workload:
    """`own` with images and weights of convolutions that lie channel by channel of each pixel."""

    def turned(each: Tensor) -> Tensor:
        return each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each

    args, kwargs = mapped((own.args, dict(own.kwargs)), turned)
    model = copy.deepcopy(own.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return replace(own, model=model, args=args, kwargs=kwargs)


def verified(one: Contender) -> Contender:
    """`one`, whose outputs are right; raises KernelError where they are not."""
    one.verify()
    return one


def _held(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of each module, again for each that holds them."""
    return [each for module in model.modules() for each in module.parameters(recurse=False)]


def _reference(results: Mapping[str, Tensor], dtype: str) -> Reference:
    return Reference({name: each.double() for name, each in results.items()}, ALLOWED[dtype], order=2)


def _steady(dense: Workload) -> dict[str, Tensor]:
    results = outputs(dense())
    try:
        _reference(results, "float32").hold(dense.name, outputs(dense()))
    except KernelError as differ:
        raise InvalidInput(
            f"outputs of {dense.name!r} that differ from call to call, or are not finite: {differ.got}",
            "a model that computes the same at each call in eval mode",
            "Leave out what draws random numbers or remembers calls.",
        ) from differ
    return results


def _swapped(dense: Workload, way: str) -> Workload:
    apart = shared_copy(dense.model, next(iter(linear_layers(dense.model))))
    for layer in linear_layers(apart).values():
        # One that is parametrized makes its weight anew at each call.
        if type(layer) is nn.Linear:
            put(apart, layer, PreparedLinear(layer, way))
    return dense.of(apart)


def _compiled(dense: Workload) -> Workload:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InvalidInput(
            f"{COMPILED} without a C++ compiler: there is no {compiler}",
            "the compiler that torch generates code for",
            "Install g++, set CXX to another, or leave --compile out.",
        )
    compiled = torch.compile(dense.model, dynamic=True)
    assert isinstance(compiled, nn.Module)
    run = dense.of(compiled)
    with torch._inductor.config.patch(freezing=True):  # noqa: SLF001 - no public name
        run()
    return run
