"""What a run came to, as a frozen value and as result.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torch import nn

from pollard.errors import InvalidInput, StoreError
from pollard.nn.surgery import sparse_layers
from pollard.pruning.aims import Aims
from pollard.pruning.plan import Plan
from pollard.reading import fits
from pollard.recipes.build import trained_network
from pollard.recipes.folder import MODEL, PLAN, RESULT, load_model, read_json, write_json
from pollard.recipes.recipe import Recipe
from pollard.report.measure import ModuleBytes

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to; `result.json` in `folder` holds the same.

    density, nnz: over all weights that can be pruned; densities: per layer. bytes: what training holds, by purpose.
    explored_rate: fraction of the dense weights that were ever trained after the last pruning. training_flops: multiply-adds
    of a step of the last training, of a dense step's, as papers count them. phases: those of each phase, in epochs of dense
    training; see `phases`. dead_neurons: outputs that keep no weight at the end.
    peak_rss_bytes: highest resident memory of the processes that ran it; baseline_rss_bytes: before data and network.
    seconds_per_step: median of forward, backward and update, of so many processes on `device`. steps: of the last training. dense: the
    same figures of the dense twin, if compared. trainability: the mean test accuracy over the first learning-rate stage of
    the last training. aims: of the last pruning, if measured. reused: nothing was left to do.
    """

    folder: Path
    recipe: Recipe
    test_accuracy: float
    test_loss: float
    train_loss: float
    density: float
    densities: dict[str, float]
    explored_rate: float
    nnz: int
    weights: int
    bytes: ModuleBytes
    peak_rss_bytes: int
    baseline_rss_bytes: int
    seconds_per_step: float
    epochs: int
    steps: int
    threads: int
    versions: dict[str, str]
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    trainability: float | None = None
    training_flops: float | None = None
    phases: dict[str, float] | None = None
    dead_neurons: int = 0
    processes: int = 1
    device: str = "cpu"
    aims: Aims | None = None
    dense: dict[str, Any] | None = None
    reused: bool = field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        told = {
            entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("folder", "reused")
        }
        aims = None if self.aims is None else asdict(self.aims)
        own = {"recipe": self.recipe.to_dict(), "bytes": asdict(self.bytes), "aims": aims}
        return {"run": self.recipe.digest, **told, **own}

    @classmethod
    def read(cls, folder: Path) -> RunResult:
        """The result in a run's `folder`; raises StoreError when there is none, or it is damaged."""
        told = read_json(folder / RESULT)
        try:
            told.pop("run")
            recipe, held = Recipe.from_dict(told.pop("recipe")), _made(ModuleBytes, told.pop("bytes"))
            # The first results did not say it: all their topologies were static.
            told.setdefault("explored_rate", told["density"])
            aims = None if told.get("aims") is None else _made(Aims, told["aims"])
            told.pop("aims", None)
            return _made(cls, told, folder=folder, recipe=recipe, bytes=held, aims=aims)
        except (KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise StoreError(
                f"{folder / RESULT}: {error}", "a complete result", "Remove it, and run the recipe again."
            ) from error

    @property
    def total_flops(self) -> float | None:
        """Multiply-adds of all phases, in epochs of dense training; None in results that do not tell phases."""
        return None if self.phases is None else sum(self.phases.values())

    @property
    def is_complete(self) -> bool:
        """Whether all that a study asks for is there: both aims, wherever something was pruned."""
        return self.aims is not None or self.recipe.method == "dense"

    def model(self) -> nn.Module:
        """The trained network, of sparse layers where the run was sparse; raises StoreError where its files are damaged or gone."""
        plan = Plan.load(self.folder / PLAN) if self.recipe.method != "dense" else None
        return trained_network(self.recipe, plan, *load_model(self.folder / MODEL))

    def kept(self) -> Plan | None:
        """What the trained network keeps; other than the plan it began with, where the topology moved. None for a dense one."""
        if self.recipe.method == "dense":
            return None
        if not self.recipe.moves:
            return Plan.load(self.folder / PLAN)
        topologies = {name: layer.topology for name, layer in sparse_layers(self.model()).items()}
        return Plan(topologies, criterion=self.recipe.method, asked=self.recipe.density)

    def save(self) -> None:
        """Write result.json into `folder`, atomically."""
        write_json(self.folder / RESULT, self.to_dict())


def _made(kind: type[Value], told: Mapping[str, Any], **made: Any) -> Value:
    """A `kind` of what JSON told and what was `made` of it; raises InvalidInput where a field is of another kind."""
    kinds = get_type_hints(kind)
    for name, value in told.items():
        if name in kinds and not fits(value, kinds[name]):
            raise InvalidInput(f"{name} = {value!r:.80}", f"{kinds[name]}", "Run the recipe again.")
    return kind(**told, **made)
