"""A topology that moves while a network trains: `step()` in place of the optimizer's, and everything moves together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from pollard.coverage import Coverage
from pollard.errors import InvalidInput, NoDecay, NothingMoves, StoreError
from pollard.formats.matrix import SparseMatrix
from pollard.kernels.indices.rewire import rewire
from pollard.kernels.products import derived
from pollard.kernels.products.workspace import trim
from pollard.nn.surgery import sparse_layers
from pollard.selection import LayerFilter
from pollard.training import processes
from pollard.training.exploration import Exploration
from pollard.training.methods.change import Change
from pollard.training.methods.method import Method
from pollard.training.optimizers import without_decay
from pollard.training.own_steps import OwnSteps
from pollard.training.passes import fault_of
from pollard.training.randomness import agreed, generator
from pollard.training.stepping import Steps, refuse_capture
from pollard.training.strangers import Unasked, watch
from pollard.training.targets import targets
from pollard.training.weights import CompressedWeight, Weight, no_gradient, refuse_made_anew, sparse_weights
from pollard.training.wrapping import Wrapper


class Sparsifier(Wrapper):
    """A torch optimizer that trains the sparse layers of `model` by `method`, in front of `optimizer`, which steps them.

    Whatever takes an optimizer takes it: loops that call `step()`, with a closure or without, learning-rate schedulers,
    gradient scalers, trainers. Its groups and state are those of `optimizer`.

    ::

        for each step:
            if an update is due:
                how many grains each layer keeps and grows
                for each layer: which stay; which come; values and optimizer state move along
            unless the update takes its place: the optimizer's step

    method: made by a member of `METHODS`. layers: which sparse layers, as name patterns or a callable; all by default.
    seed: of what is drawn at random, a part of the state; None draws one from torch's generator, so that `torch.manual_seed`
    decides. Where torch.distributed is in use, every process makes a Sparsifier and calls its methods at the same steps, and
    gradients must be the mean over all processes, as DistributedDataParallel and `processes.average_gradients` leave them:
    topologies are then the same everywhere, and checked to be. `model` may be the wrapper or what it is wrapped around;
    layers go by their names in the latter. dense: the weights `(out, in)` that layers were made of, by name, for a method
    that remembers them. own_steps: have Adam and AdamW correct the means of each weight by the steps since it came, not by all
    that were taken; see `OwnSteps`.

    Raises InvalidInput where `optimizer` does not step a layer, NothingMatched where no layer is sparse, Disagreement where
    processes hold different topologies.

    >>> from pollard.nn import SparseLinear
    >>> from pollard.training.methods.rigl import rigl
    >>> model = nn.Sequential(SparseLinear.random(8, 4, density=0.5))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> sparsifier = Sparsifier(model, optimizer, rigl(0.5, steps=100, every=10))
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(3, 8)).square().sum().backward()
    ...     sparsifier.step()
    >>> model[0].density, sparsifier.updates
    (0.5, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        layers: LayerFilter = None,
        seed: int | None = None,
        dense: Mapping[str, Tensor] | None = None,
        own_steps: bool = False,
    ) -> None:
        super().__init__(optimizer)
        self.model, self.method = processes.bare(model), method
        self.weights = sparse_weights(self.model, optimizer, layers)
        self._refuse_wrapper()
        self._own_steps = OwnSteps(self.weights if own_steps else {})
        self.seed = agreed(seed)
        self.steps = self.updates = 0
        self.flips = 0.0
        self.cost = 0.0
        self._held = {name: weight.topology.grains for name, weight in self.weights.items()}
        for weight in self.weights.values():
            weight.passes.decay, weight.passes.dense = method.decay, method.dense_memory
            whole = None if dense is None else dense.get(weight.name)
            weight.memory = None if whole is None else whole.detach().to(weight.parameter, copy=True)
        method.require({name: weight.topology.pattern for name, weight in self.weights.items()})
        changes = method.begin(self.weights, lambda name: generator(self.seed, f"first topology of {name}"))
        for name, change in changes.items():
            self._move(self.weights[name], *change, torch.Generator())
        method.after_update(self.weights, 0)
        self._require_agreement()
        self._explored = {name: Exploration(weight.topology) for name, weight in self.weights.items()}
        self._listen()
        self._watch()
        self._warn()

    def _warn(self) -> None:
        """Of what is probably not meant, to whoever makes this."""
        method = self.method
        if method.end > 0 and not self.weights:
            message = f"every sparse layer is frozen: {method.name} moves none. Set requires_grad before this call."
            warnings.warn(message, NothingMoves, stacklevel=3)
        elif method.end > 0 and method.next_due(0) is None:
            message = (
                f"{method.name} updates every {method.every} steps, up to step {method.end}: not once. Lower every."
            )
            warnings.warn(message, NothingMoves, stacklevel=3)
        undecayed = without_decay(self.optimizer, [weight.parameter for weight in self.weights.values()])
        if undecayed:
            warnings.warn(undecayed, NoDecay, stacklevel=3)

    def _listen(self) -> None:
        self._unasked = Unasked(self.method)
        self._loaded: dict[str, str] = {}
        self._stepping = Steps(self.optimizer, lambda: self._unasked.past(self.steps))
        watch(self)

    def stepped_by(self, other: Optimizer) -> None:
        """Told by `strangers` that `other` has stepped weights of this."""
        self._unasked.by(other, self.steps)

    def __getstate__(self) -> dict[str, Any]:
        # Who listens to a copied optimizer listens anew.
        return {name: value for name, value in super().__getstate__().items() if name not in {"_stepping", "_unasked"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._listen()

    def __repr__(self) -> str:
        done = f"{self.method.name} of {len(self.weights)} layers, {self.updates} updates in {self.steps} steps"
        return f"{type(self).__name__} ({done}) in front of {self.optimizer!r}"

    # A compiler that traced it would leave out the optimizer's hooks, and no step would ever have been taken.
    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step: of the optimizer, of the topology, or of both; returns what `closure` returned, as optimizers do.

        Where `optimizer` is wrapped around another and takes no step now, as under gradient accumulation, this was none.
        """
        if self.method.end > 0:
            refuse_capture(self.method.name)
        refuse_made_anew(self.model, {name: weight.layer for name, weight in self.weights.items()})
        self._follow()
        step = self.steps + 1
        due = self.method.due(step)
        instead = due and self.method.instead_of_step

        def prepare() -> None:
            for weight in self.weights.values():
                weight.passes.settle()
            if due:
                self._require_ready()
            self.method.before_step(self.weights, step)
            if not instead:
                self._own_steps.before()

        if due:
            self._refuse_wrapper()
        if instead and not self._stepping.wrapped:
            loss, taken = None if closure is None else torch.enable_grad()(closure)(), True
            prepare()
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001  schedulers ask whether it was stepped
        else:
            call = self.optimizer.step if closure is None else partial(self.optimizer.step, closure)
            loss, taken = self._stepping.taking(call, prepare, instead=instead)
            self._own_steps.after()
        if taken:
            self._count(step, due=due)
        return loss

    def _count(self, step: int, *, due: bool) -> None:
        """What a step that was taken leads to."""
        self._count_cost(due=due)
        self.steps = step
        self._unasked.taken(step)
        if due:
            with torch.no_grad(), self._lean():
                self._update()
        for weight in self.weights.values():
            weight.remember()
        self._watch()

    def _follow(self) -> None:
        """Agree with the layers, which may have been loaded since the last step; raises InvalidInput where this was, and they not."""
        for name, weight in self.weights.items():
            if weight.follow():
                self._explored[name].add(weight.topology.positions())
                if not self._loaded:
                    self._held[name] = weight.topology.grains
        for name, fingerprint in self._loaded.items():
            if self.weights[name].topology.fingerprint != fingerprint:
                raise InvalidInput(
                    f"a Sparsifier that goes on from a state in which layer {name!r} kept other weights than it does",
                    "model, optimizer and Sparsifier of one moment",
                    "Load the model's state of that moment too: the order does not matter.",
                )
        self._loaded = {}

    def _require_ready(self) -> None:
        """Raises InvalidInput where an update could not be gone through with: before anything has moved, a step included."""
        weights = list(self._moving().values())
        # Passes are of one process, gradients of all: who first has a fault in its passes is the one to be named.
        if self.method.window:
            processes.fail_together(fault_of([weight.passes for weight in weights]))
        if self.method.scores_gradient:
            processes.fail_together(no_gradient(weights))
        processes.fail_together(next(filter(None, (weight.fault() for weight in weights)), None))

    def _moving(self) -> dict[str, Weight]:
        """The weights that an update may move: what is frozen stays as it is."""
        return {name: weight for name, weight in self.weights.items() if weight.parameter.requires_grad}

    @contextmanager
    def _lean(self) -> Iterator[None]:
        if self.method.instead_of_step and not self.method.scores_gradient:
            # Nobody looks at them again: they are of the topology that goes.
            for weight in self.weights.values():
                weight.parameter.grad = None
        # What forward and backward left free lies between what they need again: an update fits into none of it, and would
        # come on top. Fresh memory is cheap beside the dense products of a method that looks at gradients, and only there.
        dense = self.method.sees_all
        if dense:
            for weight in self.weights.values():
                derived.let_go(weight.topology)
            trim()
        yield
        if dense:
            trim()

    def _update(self) -> None:
        fraction = self.method.fraction(self.steps)
        moving = self._moving()
        held = {name: self._held[name] for name in moving}
        counts = self.method.counts(moving, targets(self.model, self.method, moving, held, self.steps), fraction)
        last = list(self.weights)[-1] if self.weights else ""
        found = []
        for name, weight in moving.items():
            keep, target = counts[name]
            draw = generator(self.seed, f"update {self.updates} of {name}")
            change = Change(weight, keep, target, fraction, draw, last=name == last)
            found.append((change, *self.method.exchange(change)))
        # An error so far has left all as it was: nothing moves before every layer knows what stays and what comes.
        changed = total = 0
        for weight in self.weights.values():
            weight.passes.stop()
        while found:
            change, stays, grown = found.pop(0)
            changed += self._move(change.weight, stays, grown, change.generator)
            total += change.weight.topology.grains
            self._explored[change.weight.name].add(grown)
        self.flips = changed / max(1, total)
        self.updates += 1
        self.method.after_update(self.weights, self.steps)
        self._require_agreement()

    def _move(self, weight: Weight, stays: Tensor, grown: Tensor, draw: torch.Generator) -> int:
        """Move to what stays and what comes; the number of grains that came and were not there."""
        if not len(grown) and bool(stays.all()):
            return 0
        after, source = rewire(weight.topology, stays, grown, anew=self.method.anew)
        came = torch.from_numpy(source.numpy() < 0)
        count = int(np.count_nonzero(came.numpy()))
        fill = self.method.starting(count * weight.size, draw)
        if weight.memory is not None:
            fill = SparseMatrix.from_dense(weight.memory, after).values[came.repeat_interleave(weight.size)]
        weight.move(after, source, fill)
        return count

    def _watch(self) -> None:
        """Watch the passes of the next step if its growth, or a later one's, looks at them."""
        following = self.steps + 1
        over = self.method.window == 0 or self.method.next_due(self.steps) is None
        for weight in self.weights.values():
            if self.method.watches(following):
                weight.passes.watch(following)
            elif over:
                weight.passes.detach()
            else:
                weight.passes.attach()
                weight.passes.stop()

    def _count_cost(self, *, due: bool) -> None:
        dense = float(sum(math.prod(weight.topology.shape) for weight in self.weights.values()))
        forward = float(sum(weight.topology.nnz for weight in self.weights.values()))
        cost = self.method.update_cost if due else self.method.step_cost
        self.cost += cost(forward, dense) / (3.0 * dense) if dense else 0.0

    def _require_agreement(self) -> None:
        if processes.count() > 1:
            processes.require_agreement({n: w.topology.fingerprint for n, w in self.weights.items()}, self.steps)

    def _refuse_wrapper(self) -> None:
        if self.method.end > 0:
            processes.refuse_shards(
                {name: weight.parameter for name, weight in self.weights.items()},
                f"whole layers, whose topology method {self.method.name!r} can move",
                "Leave fully_shard out, as kept weights are few: wrap the model in DistributedDataParallel, or call "
                "pollard.training.processes.average_gradients(model) before step().",
            )
        compressed = any(isinstance(weight, CompressedWeight) for weight in self.weights.values())
        if self.method.resizes and compressed and processes.is_wrapped(self.model):
            raise InvalidInput(
                f"method {self.method.name!r} on a model within DistributedDataParallel, whose buckets keep their sizes",
                "a method whose layers keep as many weights as before",
                "Leave DistributedDataParallel out, and call pollard.training.processes.average_gradients(model) "
                "between loss.backward() and step().",
            )

    def metrics(self) -> dict[str, float]:
        """Figures of the moment: density of these layers, model_density (of all parameters of the model, of which what is left
        dense is kept), explored_rate (weights that were ever kept, of all), flips (kept weights that the
        last update exchanged), dead_neurons (rows that keep nothing), training_flops and inference_flops (of dense ones).
        """
        # Where all is frozen, what there is says how dense the model is.
        held = self.weights or sparse_layers(self.model)
        topologies = {name: each.topology for name, each in held.items()}
        sizes = {name: math.prod(topology.shape) for name, topology in topologies.items()}
        total = sum(sizes.values())
        density = sum(topology.nnz for topology in topologies.values()) / total
        rates = {name: each.rate for name, each in self._explored.items()}
        return {
            "density": density,
            "model_density": Coverage.of(self.model).model_density,
            "explored_rate": sum(rates.get(name, topologies[name].density) * size for name, size in sizes.items())
            / total,
            "flips": self.flips,
            "dead_neurons": float(sum(int((each.fan_in() == 0).sum()) for each in topologies.values())),
            "training_flops": self.cost / max(1, self.steps),
            "inference_flops": density,
        }

    def own_state_dict(self) -> dict[str, Any]:
        """All that going on bit for bit takes besides the state of model and optimizer; `state_dict` holds it too.

        The same on every process, all of which call this; any number of them may go on from it.
        """
        return {
            "method": self.method.name,
            "seed": self.seed,
            "steps": self.steps,
            "updates": self.updates,
            "flips": self.flips,
            "cost": self.cost,
            "held": dict(self._held),
            "topologies": {name: weight.topology.fingerprint for name, weight in self.weights.items()},
            "explored": {name: each.state_dict() for name, each in self._explored.items()},
            "active": {name: weight.active() for name, weight in self.weights.items()},
            "memory": {name: weight.memory for name, weight in self.weights.items()},
            "passes": {name: weight.passes.state_dict() for name, weight in self.weights.items()},
        }

    def require_own(self, state: Mapping[str, Any]) -> None:
        """Raises StoreError where `state` is of another method, or of other layers."""
        names = list(state.get("held", {}))
        if state.get("method") != self.method.name or names != list(self.weights):
            raise StoreError(
                f"the state of method {state.get('method')!r} for layers {names}",
                f"method {self.method.name!r} for layers {list(self.weights)}",
                "Load what this model and method saved.",
            )

    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, with model and optimizer of the same moment, in any order; raises StoreError where it is another's."""
        self.require_own(state)
        # Files from before there were any have none.
        self._loaded = dict(state.get("topologies", {}))
        self.seed = state.get("seed", self.seed)
        self.steps, self.updates = state["steps"], state["updates"]
        self.flips, self.cost, self._held = state["flips"], state["cost"], dict(state["held"])
        for name, weight in self.weights.items():
            weight.follow()
            weight.use(state["active"][name])
            memory = state["memory"][name]
            weight.memory = None if memory is None else memory.to(weight.parameter.device)
            self._explored[name].load_state_dict(state["explored"][name])
            weight.passes.load_state_dict(state["passes"][name])
        self._watch()
