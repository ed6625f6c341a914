"""Train, score, prune, train again: the stages before a recipe's last training, each skipped once its output is there.

::

    dense training to epoch score_at        a run of its own, shared by all recipes with the same dense twin
    for each cycle but the last:
        score, inverted if asked; prune; weights of epoch weights_at
        train from epoch schedule_at to epoch score_at
    score; prune; ablation; weights of epoch weights_at; repair
    (then: train from epoch schedule_at to the end)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pollard.formats.store import load_tensors
from pollard.nn.surgery import densify_, sparsify_
from pollard.pruning.plan import Plan
from pollard.recipes.build import ANEW, build, decide, finished, initial, is_born_sparse, trained_network
from pollard.recipes.folder import MODEL, PLAN, ROUNDS, save_model
from pollard.recipes.problem import Problem
from pollard.recipes.recipe import Recipe
from pollard.training import Outputs, processes, train

State = Mapping[str, Tensor]


def required(recipe: Recipe) -> list[Recipe]:
    """The recipes whose runs `recipe` takes weights from: its dense twin, where it looks at a trained network.

    Running them first is never needed, as a run has them made; it keeps runs side by side from waiting for one another.

    >>> [twin.method for twin in required(Recipe(score_at=20))], required(Recipe())
    (['dense'], [])
    """
    return [recipe.twin()] if max(recipe.score_at, recipe.weights_at) > 0.0 else []


@dataclass(frozen=True)
class Pipeline:
    """The stages of `recipe` in its run `folder`, on the device of the problem's examples.

    dense: the weights that the dense twin has at an epoch. outputs: where the training of a stage leaves its traces,
    given the folder and the name of the stage.
    """

    recipe: Recipe
    problem: Problem
    folder: Path
    dense: Callable[[float], State]
    outputs: Callable[[Path, str], Outputs]

    def start(self) -> tuple[nn.Module, Plan | None]:
        """The network that the last training starts from, and the plan it was made by; a dense one has none."""
        if self.recipe.method == "dense" or is_born_sparse(self.recipe):
            path = self.folder / PLAN
            stored = Plan.load(path) if path.exists() else None
            model, plan = build(self.recipe, self.problem.ends, self.problem.examples, stored)
            if plan is not None and stored is None:
                _save(plan, path)
            return model, plan
        return self._pruned(self.recipe.cycles)

    def before(self) -> nn.Module:
        """The dense network that the last pruning kept weights of; one that was born sparse, as dense as it ever was."""
        if is_born_sparse(self.recipe):
            return densify_(self.start()[0])
        return self._weights(self.recipe.cycles, self._scored(self.recipe.cycles)[0])

    def _pruned(self, cycle: int) -> tuple[nn.Module, Plan]:
        """The network that `cycle` leaves to train, and its plan."""
        scored, within = self._scored(cycle)
        weights = self._weights(cycle, scored)
        path = self._folder_of(cycle) / PLAN
        if path.exists():
            plan = Plan.load(path)
        else:
            plan = self._decided(cycle, scored, within, weights)
            _save(plan, path)
        sparse = sparsify_(weights, plan, storage=self.recipe.storage)
        return sparse.to(self.problem.device), plan

    def _scored(self, cycle: int) -> tuple[nn.Module, Plan | None]:
        """The network that `cycle` scores, dense, and the plan that it was trained within."""
        if cycle == 1:
            return self._dense_at(self.recipe.score_at), None
        model, plan = self._trained(cycle - 1)
        # Scores and new weights are found in float32, whatever training left the weights in: none of them changes by that.
        return densify_(model).float(), plan

    def _weights(self, cycle: int, scored: nn.Module) -> nn.Module:
        """The network whose weights are kept, dense: other than `scored` where it rewinds or is drawn anew."""
        if self.recipe.ablation == "reinitialise" and cycle == self.recipe.cycles:
            return initial(self.recipe, self.problem.ends, ANEW, on=self.problem.device)
        return self._dense_at(self.recipe.weights_at) if self.recipe.rewinds else scored

    def _decided(self, cycle: int, scored: nn.Module, within: Plan | None, weights: nn.Module) -> Plan:
        recipe, examples = self.recipe, self.problem.examples
        share = cycle / recipe.cycles
        density = recipe.first_density if share == 1.0 else recipe.first_density**share
        purpose = "mask" if cycle == 1 else f"mask {cycle}"
        # Rounds over dense weights are sooner made again than written down.
        kept = recipe.never_dense and processes.rank() == 0
        resume = self._folder_of(cycle) / ROUNDS if kept else None
        plan = decide(recipe, scored, examples, density=density, within=within, purpose=purpose, resume=resume)
        return finished(recipe, plan, scored, weights, examples, last=cycle == recipe.cycles)

    def _trained(self, cycle: int) -> tuple[nn.Module, Plan]:
        """The network that `cycle` has pruned and trained, and its plan."""
        folder, recipe = self._folder_of(cycle), self.recipe
        if (folder / MODEL).exists():
            plan = Plan.load(folder / PLAN)
            trained = trained_network(recipe, plan, load_tensors(folder / MODEL)[0], self.problem.ends)
            return trained.to(self.problem.device), plan
        folder.mkdir(exist_ok=True)
        model, plan = self._pruned(cycle)
        outputs = self.outputs(folder, f"cycle {cycle} of {recipe.cycles}")
        train(
            model,
            self.problem.examples,
            self.problem.evaluation,
            recipe.options(),
            outputs=outputs,
            start=recipe.schedule_at,
            stop=recipe.score_at,
        )
        if processes.rank() == 0:
            save_model(folder / MODEL, model, recipe, self.problem.ends, cycle=cycle)
        return model, plan

    def _dense_at(self, epoch: float) -> nn.Module:
        model = initial(self.recipe, self.problem.ends, on=self.problem.device)
        if epoch > 0.0:
            model.load_state_dict(self.dense(epoch))
        return model

    def _folder_of(self, cycle: int) -> Path:
        return self.folder if cycle == self.recipe.cycles else self.folder / f"cycle-{cycle}"


def _save(plan: Plan, path: Path) -> None:
    # All processes that train together come to the same plan.
    if processes.rank() == 0:
        plan.save(path)
