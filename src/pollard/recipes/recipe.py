"""An experiment as a frozen value, whose hash names its run folder."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.nn.surgery import Storage
from pollard.pruning.allocation import ALLOCATIONS
from pollard.pruning.criteria import CRITERIA, own_allocation
from pollard.recipes.models import INITIALISERS, check_model_name
from pollard.training.options import TrainingOptions

METHODS = (*CRITERIA, "dense")
STORAGES = get_args(Storage)
# Part of the hash: raised when a recipe of the same fields comes to mean another experiment.
MEANING = 1

Value = str | int | float | bool


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, network, what to keep and how to train; `describe()` says what each field is; bad ones raise InvalidInput.

    A recipe of method ``dense`` keeps everything, so the fields that say what to keep are set to neutral values: the
    dense twins of all recipes that differ only there are one recipe. ``allocation=""`` is the method's own choice.

    >>> Recipe(method="snip", density=0.05)
    Recipe(density=0.05)
    >>> Recipe().digest == Recipe(seed=1).digest, len(Recipe().digest)
    (False, 12)
    >>> Recipe(method="random").allocation
    'erk'
    """

    data: str = _setting("digits", "digits, mnist, fashion-mnist, or the path of a folder of IDX files")
    model: str = _setting("lenet-300-100", "lenet-300-100, or mlp and layer sizes as in mlp-784-1024-1024-10")
    initialiser: str = _setting("lecun", "initial weights: lecun (as SNIP's paper), kaiming or torch")
    method: str = _setting("snip", "what to keep: snip, magnitude, random, or dense for everything")
    density: float = _setting(0.1, "fraction of the weights to keep, in (0, 1]")
    allocation: str = _setting("", "density per layer: global, uniform, er, erk (default: global for snip, else erk)")
    pattern: str = _setting("unstructured", "unstructured, or vN: N neighbouring rows share their columns")
    score_batch: int = _setting(0, "training examples that snip scores on; 0 for one batch")
    storage: Storage = _setting("compressed", "compressed: only kept weights exist; masked: dense ones and a mask")  # noqa: RUF009
    validation: float = _setting(0.0, "fraction of the training examples held out and evaluated as 'validation'")
    epochs: int = _setting(20, "times over the training examples")
    batch_size: int = _setting(100, "examples a step")
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
            object.__setattr__(self, entry.name, _typed(entry.name, getattr(self, entry.name), type(entry.default)))
        _one_of("method", self.method, METHODS)
        if self.method == "dense":
            for name in ("density", "allocation", "pattern", "score_batch", "storage"):
                object.__setattr__(self, name, DENSE[name])
        elif not self.allocation:
            object.__setattr__(self, "allocation", own_allocation(CRITERIA[self.method]))
        self._validate()

    def __repr__(self) -> str:
        changed = {
            e.name: getattr(self, e.name)
            for e in fields(self)
            if getattr(self, e.name) != _default(e.name, self.method)
        }
        return "Recipe(" + ", ".join(f"{name}={value!r}" for name, value in changed.items()) + ")"

    def _validate(self) -> None:
        if not self.data:
            raise InvalidInput(
                "an empty data", "the name of a data set, or a folder", "Use data='digits' to try things out."
            )
        check_model_name(self.model)
        _one_of("initialiser", self.initialiser, tuple(INITIALISERS))
        _one_of("storage", self.storage, STORAGES)
        _one_of("allocation", self.allocation or "global", tuple(ALLOCATIONS))
        Pattern.parse(self.pattern)
        if not 0.0 < self.density <= 1.0:
            raise InvalidInput(
                f"density {self.density}", "a density in (0, 1]", "Density is the fraction kept: 95 % sparsity is 0.05."
            )
        if self.score_batch < 0:
            raise InvalidInput(f"score_batch {self.score_batch}", "0 or more examples", "Use 0 for one training batch.")
        if not 0.0 <= self.validation < 1.0:
            raise InvalidInput(f"validation {self.validation}", "a fraction in [0, 1)", "0.1 holds out a tenth.")
        self.options()

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Field name to one line of help."""
        return {entry.name: entry.metadata["help"] for entry in fields(cls)}

    @property
    def digest(self) -> str:
        """12 hex digits of the sha256 of the recipe as canonical JSON: the name of its run folder."""
        canonical = json.dumps({"meaning": MEANING, **asdict(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def options(self) -> TrainingOptions:
        """The part that says how to train."""
        return TrainingOptions(**{entry.name: getattr(self, entry.name) for entry in fields(TrainingOptions)})

    def twin(self) -> Recipe:
        """The same experiment with everything kept."""
        return replace(self, method="dense")

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
        try:
            text = path.read_text("utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{path}: {error}", "a recipe as TOML or JSON", "Recipe().to_toml() prints one to start from."
            ) from error
        if not isinstance(values, dict):
            raise InvalidInput(
                f"{path} that holds a {type(values).__name__}", "a table of recipe fields", "See Recipe().to_toml()."
            )
        return cls.from_dict(values)


DENSE: dict[str, Value] = {
    "density": 1.0,
    "allocation": "",
    "pattern": "unstructured",
    "score_batch": 0,
    "storage": "compressed",
}


def _default(name: str, method: str) -> object:
    if method == "dense" and name in DENSE:
        return DENSE[name]
    if name == "allocation":
        return own_allocation(CRITERIA[method])
    return next(entry.default for entry in fields(Recipe) if entry.name == name)


def _typed(name: str, value: object, kind: type) -> Value:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InvalidInput(f"{name}={value!r}", f"{_ARTICLES[kind]}", f"Give {name} as {_ARTICLES[kind]}.")
    assert isinstance(value, (str, int, float, bool))
    return value


_ARTICLES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else f"Use {allowed[0]!r} if in doubt."
        raise InvalidInput(f"{name} {value!r}", "one of " + ", ".join(allowed), fix)
