"""An experiment as a frozen value, whose hash names its run folder."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pollard import networks
from pollard.arguments import require_density, require_one_of
from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.nn.surgery import Storage
from pollard.pruning.allocation import ALLOCATIONS, reads
from pollard.pruning.criteria import CRITERIA, own_allocation
from pollard.pruning.scoring import Mode
from pollard.recipes.fields import Value, read_fields, typed
from pollard.recipes.models import INITIALISERS, OWN, own_initialiser
from pollard.recipes.moving import Span, moving_method
from pollard.training.methods import METHODS as MOVING
from pollard.training.methods.method import Method
from pollard.training.options import TrainingOptions

METHODS = (*CRITERIA, *MOVING, "dense")
STORAGES = get_args(Storage)
MODES = get_args(Mode)
ABLATIONS = ("shuffle", "reinitialise", "invert", "restore")
REPAIRS = ("isometry", "orthogonal", "refit")
# Part of the hash: raised when a recipe of the same fields comes to mean another experiment.
MEANING = 1
UNSAID = -1.0
ANY_SPAN = Span(1000, 100)  # what a method makes of its options does not depend on how long it runs


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


def _later(default: Any, help_text: str) -> Any:
    """A field that the first recipes did not have: left at its default it is no part of the hash, as it was not theirs."""
    return field(default=default, metadata={"help": help_text, "later": True})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, network, what to keep and how to train; `describe()` says what each field is; bad ones raise InvalidInput.

    A recipe of method ``dense`` keeps everything, so the fields that say what to keep are set to neutral values: the
    dense twins of all recipes that differ only there are one recipe. ``allocation=""`` is the method's own choice.

    Epochs are those of the dense network's training, and of the learning-rate schedule. The network is trained to epoch
    `score_at`, scored and pruned; what is kept gets its weights of epoch `weights_at`, and is trained along the schedule
    from epoch `schedule_at` to its end. With `cycles`, it is trained from `schedule_at` to `score_at`, scored and pruned
    again, before that; cycle k of n leaves ``density ** (k / n)``.

    >>> Recipe(method="snip", density=0.05)
    Recipe(density=0.05)
    >>> Recipe().digest == Recipe(seed=1).digest, len(Recipe().digest)
    (False, 12)
    >>> Recipe(method="random").allocation
    'erk'
    """

    data: str = _setting("digits", "digits, mnist, fashion-mnist, cifar-10, or the path of a folder of IDX files")
    model: str = _setting("lenet-300-100", networks.known())
    initialiser: str = _setting(
        "",
        "initial weights: lecun (as SNIP's paper), kaiming, xavier (as GraSP's code), torch, or own, as the network's modules "
        "draw them (default: lecun where all layers are linear, own elsewhere)",
    )
    method: str = _setting(
        "snip",
        f"what to keep: {', '.join(sorted(CRITERIA))}; with a topology that moves while training: "
        f"{', '.join(sorted(MOVING))}; or dense for everything",
    )
    density: float = _setting(0.1, "fraction of the weights to keep, in (0, 1]")
    allocation: str = _setting("", f"density per layer: {', '.join(ALLOCATIONS)} (default: the method's own)")
    pattern: str = _setting(
        "unstructured", "unstructured, vN (N rows share their columns), bRxC (blocks), N:M (N of every M)"
    )
    score_batch: int = _setting(0, "training examples that scores are taken on; 0 for one batch")
    score_per_class: int = _later(
        0, "examples of each class to score on; 0 for score_batch, or the method's own number"
    )
    score_mode: Mode | Literal[""] = _later("", "eval or train, while scoring (default: the method's own)")  # noqa: RUF009
    temperature: float = _later(0.0, "outputs are divided by it for the scoring loss; 0 for the method's own")
    score_rounds: int = _later(0, "times to score, each time what is left; 0 for the method's own")
    score_at: float = _later(0.0, "epoch of dense training at which to score: 0 before it, epochs after it")
    weights_at: float = _later(UNSAID, "epoch whose weights are kept: 0 initial, k late reset; -1 for score_at")
    schedule_at: float = _later(0.0, "epoch of the learning-rate schedule at which what is kept starts training")
    cycles: int = _later(1, "times to train, score and prune, down to density in equal ratios")
    ablation: str = _later(
        "", "shuffle within layers, reinitialise kept weights, restore those that were adapted, or invert"
    )
    repair: str = _later(
        "",
        "isometry: kept weights pass signals unscaled; orthogonal: exactly so, in other places; refit: they make up for the rest",
    )
    criterion: str = _later("", "of the first topology, where the method moves it (default: random)")
    update_every: int = _later(0, "steps between updates of the topology; 0 for the method's own")
    drop_fraction: float = _later(0.0, "of the weights exchanged at an update; 0 for the method's own")
    update_until: float = _later(0.0, "fraction of the training after which updates end; 0 for the method's own")
    start_density: float = _later(0.0, "density at first, where it falls; 0 for the method's own")
    density_curve: str = _later("", "linear, cubic, cosine, exponential or one-cycle (default: the method's own)")
    method_options: str = _later("", "more options of the method, as in signed=false,deviation=0.2")
    never_dense: bool = _later(
        False, "initial weights have no memory: numbers by position, scored some rows at a time, drawn where kept"
    )
    storage: Storage = _setting("compressed", "compressed: only kept weights exist; masked: dense ones and a mask")  # noqa: RUF009
    validation: float = _setting(0.0, "fraction of the training examples held out and evaluated as 'validation'")
    epochs: int = _setting(20, "times over the training examples")
    batch_size: int = _setting(100, "examples a step")
    precision: str = _later(
        "float32", "float32; autocast: bfloat16 products, float32 weights; or bfloat16: weights and optimizer state too"
    )
    augment: str = _later(
        "",
        "changes of training images, each time anew: crop (shifted by up to 4 pixels), flip (mirrored), or crop,flip",
    )
    optimizer: str = _setting("sgd", "sgd, adam or adamw")
    lr: float = _setting(0.1, "highest learning rate")
    momentum: float = _setting(0.9, "of sgd")
    nesterov: bool = _setting(False, "Nesterov momentum, of sgd")
    beta1: float = _setting(0.9, "decay of the first moment, of adam and adamw")
    beta2: float = _setting(0.999, "decay of the second moment, of adam and adamw")
    weight_decay: float = _setting(5e-4, "decay of kept weights")
    decay_all: bool = _setting(False, "decay biases too")
    schedule: str = _setting("one-cycle", "learning rate: constant, step, cosine or one-cycle")
    decay_every: int = _setting(0, "steps between decays of schedule step; 0 for a third of the run")
    decay_factor: float = _setting(0.1, "of schedule step")
    warmup: int = _setting(0, "steps of linear warm-up")
    seed: int = _setting(0, "of weights, scoring batch, order of examples and random masks")

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, typed(entry.name, getattr(self, entry.name), type(entry.default)))
        require_one_of("method", self.method, METHODS)
        for name, value in self._filled_in().items():
            if self.method == "dense" or not getattr(self, name):
                object.__setattr__(self, name, value)
        object.__setattr__(self, "initialiser", self.initialiser or own_initialiser(self.model))
        self._validate()

    def __repr__(self) -> str:
        plain = {e.name: e.default for e in fields(self)} | self._filled_in()
        plain["initialiser"] = own_initialiser(self.model)
        changed = {name: getattr(self, name) for name in plain if getattr(self, name) != plain[name]}
        return "Recipe(" + ", ".join(f"{name}={value!r}" for name, value in changed.items()) + ")"

    def _validate(self) -> None:
        if not self.data:
            raise InvalidInput(
                "an empty data", "the name of a data set, or a folder", "Use data='digits' to try things out."
            )
        networks.require_name(self.model)
        own = () if networks.is_fully_connected(self.model) else (OWN,)
        require_one_of("initialiser", self.initialiser, (*INITIALISERS, *own))
        require_one_of("storage", self.storage, STORAGES)
        require_one_of("allocation", self.allocation or "global", tuple(ALLOCATIONS))
        Pattern.parse(self.pattern)
        require_density(self.density)
        if not 0.0 <= self.validation < 1.0:
            raise InvalidInput(f"validation {self.validation}", "a fraction in [0, 1)", "0.1 holds out a tenth.")
        self.options()
        self._validate_scoring()
        self._validate_pipeline()
        self._validate_moving()
        self._validate_never_dense()

    def _validate_scoring(self) -> None:
        for name in ("score_batch", "score_per_class"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} {getattr(self, name)}", "0 or more examples", "Use 0 for the default.")
        if self.score_batch and self.score_per_class:
            raise InvalidInput(
                f"score_batch {self.score_batch} and score_per_class {self.score_per_class}",
                "one of them",
                "score_per_class takes as many examples of each class, score_batch takes them as they come.",
            )
        require_one_of("score_mode", self.score_mode, ("", *MODES))
        if not 0.0 <= self.temperature < math.inf:
            raise InvalidInput(f"temperature {self.temperature}", "a number above 0", "Use 0 for the method's own.")
        if self.score_rounds < 0:
            raise InvalidInput(f"score_rounds {self.score_rounds}", "at least 1", "Use 0 for the method's own.")

    def _validate_pipeline(self) -> None:
        for name in ("score_at", "weights_at", "schedule_at"):
            epoch = getattr(self, name)
            if name == "weights_at" and epoch == UNSAID:
                continue
            if not 0.0 <= epoch <= self.epochs or (name == "schedule_at" and epoch == self.epochs):
                raise InvalidInput(
                    f"{name} {epoch:g} of {self.epochs} epochs",
                    f"an epoch of training, 0 to {self.epochs}{', with some left to train' * (name == 'schedule_at')}",
                    "Use 0 for before training; score_at and weights_at may be epochs, for after it.",
                )
        if self.cycles < 1:
            raise InvalidInput(f"cycles {self.cycles}", "at least 1", "Use 1 to prune once.")
        if self.cycles > 1 and self.score_at <= self.schedule_at:
            raise InvalidInput(
                f"{self.cycles} cycles that train from epoch {self.schedule_at:g} to {self.score_at:g}",
                "schedule_at before score_at",
                f"Set score_at={self.epochs} to prune after training; to score again untrained, set score_rounds.",
            )
        require_one_of("ablation", self.ablation, ("", *ABLATIONS))
        require_one_of("repair", self.repair, ("", *REPAIRS))
        if self.ablation == "invert" and CRITERIA[self.rule].solve is not None:
            raise InvalidInput(
                f"ablation 'invert' of {self.rule}, which changes weights as it chooses",
                "a method that only scores",
                "Use ablation='shuffle' or 'reinitialise'.",
            )

    def _validate_moving(self) -> None:
        if self.moves:
            require_one_of("criterion", self.rule, tuple(CRITERIA))
            made = self.moving(ANY_SPAN)
            if made is not None and made.remembers:
                raise InvalidInput(
                    f"method_options {self.method_options!r}, a dense memory of weights that a recipe never makes",
                    f"method {self.method} without it",
                    "Leave dense_memory out, or call pollard.top_kast(model, ..., dense_memory=True) in a loop of your own.",
                )
            return
        for name in MOVING_FIELDS:
            if getattr(self, name):
                raise InvalidInput(
                    f"{name} {getattr(self, name)!r} with method {self.method}, whose topology stays",
                    "a method that moves it: " + ", ".join(MOVING),
                    f"Leave {name} out, or choose such a method.",
                )

    def _validate_never_dense(self) -> None:
        if not self.never_dense:
            return
        able = [name for name, rule in CRITERIA.items() if rule.by_row]
        wrong = {
            f"method {self.method}": self.method == "dense" or self.rule not in able,
            f"score_at {self.score_at:g}": self.score_at > 0,
            f"repair {self.repair!r}": bool(self.repair),
            f"storage {self.storage!r}": self.storage != "compressed",
            f"allocation {self.allocation!r}": reads(ALLOCATIONS[self.allocation or "erk"]) in CRITERIA,
        }
        told = [each for each, is_wrong in wrong.items() if is_wrong]
        if told:
            raise InvalidInput(
                f"never_dense with {' and '.join(told)}",
                "what is decided before training, of weights row by row: a criterion of " + ", ".join(able),
                "Leave never_dense out, or choose such a method.",
            )

    @property
    def moves(self) -> bool:
        """Whether the method moves the topology while the network trains."""
        return self.method in MOVING

    @property
    def rule(self) -> str:
        """The criterion of the first topology."""
        return (self.criterion or "random") if self.moves else self.method

    @property
    def first_density(self) -> float:
        """The density that training starts from."""
        found = self.moving(ANY_SPAN) if self.moves else None
        return self.density if found is None or found.density is None else min(1.0, found.density(0))

    def moving(self, span: Span) -> Method | None:
        """The method that moves the topology over `span`; None where it stays."""
        if not self.moves:
            return None
        given = {
            "every": self.update_every,
            "fraction": self.drop_fraction,
            "until": self.update_until,
            "start_density": self.start_density,
            "curve": self.density_curve,
        }
        own = self._filled_in()["allocation"]
        allocation = "" if self.allocation == own else self.allocation
        return moving_method(self.method, self.density, span, given, self.method_options, allocation=allocation)

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Field name to one line of help."""
        return {entry.name: entry.metadata["help"] for entry in fields(cls)}

    @property
    def digest(self) -> str:
        """12 hex digits of the sha256 of the recipe as canonical JSON: the name of its run folder."""
        told = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if "later" not in entry.metadata or not self._means_nothing(entry)
        }
        canonical = json.dumps({"meaning": MEANING, **told}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def rewinds(self) -> bool:
        """Whether the kept weights are those of another epoch than the scores."""
        return self.weights_at not in (UNSAID, self.score_at)

    def options(self) -> TrainingOptions:
        """The part that says how to train."""
        return TrainingOptions(**{entry.name: getattr(self, entry.name) for entry in fields(TrainingOptions)})

    def twin(self) -> Recipe:
        """The same experiment with everything kept."""
        return replace(self, method="dense", never_dense=False)

    def to_dict(self) -> dict[str, Value]:
        """Field name to value."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Recipe:
        """The recipe with these fields, all others at their defaults; raises InvalidInput on an unknown one."""
        known = [entry.name for entry in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=3)
                fix = f"Did you mean {' or '.join(near)}?" if near else "See Recipe.describe()."
                raise InvalidInput(f"recipe field {name!r}", "one of " + ", ".join(known), fix)
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every type

    def to_toml(self) -> str:
        """The recipe as TOML, one commented line a field."""
        # JSON's strings, numbers and booleans are TOML's.
        lines = [f"{e.name} = {json.dumps(getattr(self, e.name))}  # {e.metadata['help']}" for e in fields(self)]
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """The recipe in a ``.toml`` or ``.json`` file; raises InvalidInput when it cannot be read or understood."""
        return cls.from_dict(read_fields(path))

    def _filled_in(self) -> dict[str, Value]:
        """Fields that the method decides, unless they are given."""
        if self.method == "dense":
            return DENSE
        if not self.moves:
            return {"allocation": own_allocation(CRITERIA[self.method])}
        own = METHOD_ALLOCATIONS[self.method]
        return {"allocation": "erk" if own == "global" else own}

    def _means_nothing(self, entry: Field[Any]) -> bool:
        """Whether a field says only what would be so anyway."""
        own: dict[str, Value] = DENSE
        if self.method != "dense":
            rule = CRITERIA[self.rule]
            own = {"score_mode": rule.mode, "temperature": rule.temperature, "score_rounds": rule.rounds}
            own["score_per_class"] = 0 if self.score_batch else rule.per_class
            own["weights_at"] = self.score_at
        return getattr(self, entry.name) in (entry.default, own.get(entry.name))


MOVING_FIELDS = (
    "criterion",
    "update_every",
    "drop_fraction",
    "update_until",
    "start_density",
    "density_curve",
    "method_options",
)
METHOD_ALLOCATIONS = {name: builder(0.5, 1000).allocation for name, builder in MOVING.items()}
DENSE: dict[str, Value] = {
    "density": 1.0,
    "allocation": "",
    "pattern": "unstructured",
    "score_batch": 0,
    "score_per_class": 0,
    "score_mode": "",
    "temperature": 0.0,
    "score_rounds": 0,
    "score_at": 0.0,
    "weights_at": UNSAID,
    "schedule_at": 0.0,
    "cycles": 1,
    "ablation": "",
    "repair": "",
    "criterion": "",
    "update_every": 0,
    "drop_fraction": 0.0,
    "update_until": 0.0,
    "start_density": 0.0,
    "density_curve": "",
    "method_options": "",
    "storage": "compressed",
}
