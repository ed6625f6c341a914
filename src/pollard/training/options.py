"""How to train, as a frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pollard.arguments import require_one_of
from pollard.errors import InvalidInput
from pollard.training import schedules
from pollard.training.augmentation import changes_of
from pollard.training.schedules import Schedule

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine", "one-cycle")
PRECISIONS = ("float32", "autocast", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """Everything that decides a training trajectory besides the model and the data; raises InvalidInput when unusable.

    epochs: times over the training set. batch_size: examples a step; the last batch of an epoch may be smaller.
    optimizer: sgd, adam or adamw. lr: the highest learning rate. momentum, nesterov: of sgd. beta1, beta2: of adam.
    weight_decay: on kept weights, and with decay_all on biases and normalisations too.
    schedule: constant, step, cosine or one-cycle. decay_every: steps, of schedule step; 0 is a third of the run.
    warmup: steps of linear warm-up, on top of any schedule. seed: of the order of examples and of dropout.
    precision: float32 leaves model and data as they are; autocast runs forward and loss in bfloat16, where weights, their
    gradients and the optimizer's state stay float32; bfloat16 has all of them, and the inputs, in bfloat16, stepped in float32
    and rounded stochastically.
    augment: how training images are changed at random, each time anew: crop, flip, or crop,flip.
    """

    epochs: int = 20
    batch_size: int = 100
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 5e-4
    decay_all: bool = False
    schedule: str = "one-cycle"
    decay_every: int = 0
    decay_factor: float = 0.1
    warmup: int = 0
    precision: str = "float32"
    augment: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        require_one_of("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise InvalidInput(
                f"precision {self.precision!r}",
                "one of " + ", ".join(PRECISIONS),
                "Use 'autocast' for bfloat16 products with float32 weights, 'bfloat16' to hold weights in it too.",
            )
        changes_of(self.augment)
        for name, least in (("epochs", 1), ("batch_size", 1), ("decay_every", 0), ("warmup", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} {getattr(self, name)}", f"at least {least}", f"Raise {name}.")
        for name in ("momentum", "beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InvalidInput(
                    f"{name} {getattr(self, name)}", "a number in [0, 1)", "Common values: 0.9, beta2 0.999."
                )
        if not (math.isfinite(self.lr) and self.lr > 0.0):
            raise InvalidInput(
                f"lr {self.lr}", "a learning rate above 0", "Start from 0.1 for sgd, 0.001 for adam and adamw."
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0.0):
            raise InvalidInput(f"weight_decay {self.weight_decay}", "0 or more", "Use 0 for none, 0.0005 is common.")
        if not 0.0 < self.decay_factor <= 1.0:
            raise InvalidInput(f"decay_factor {self.decay_factor}", "a number in (0, 1]", "0.1 is a tenth.")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0.0):
            raise InvalidInput(
                "nesterov", "sgd with momentum", "Set optimizer='sgd' and momentum above 0, or drop nesterov."
            )

    def learning_rate(self, steps: int) -> Schedule:
        """The learning rate at each of `steps` steps."""
        rates = {
            "constant": lambda: schedules.constant(self.lr),
            "step": lambda: schedules.decay(self.lr, self.decay_every or math.ceil(steps / 3), self.decay_factor),
            "cosine": lambda: schedules.cosine(self.lr, steps),
            "one-cycle": lambda: schedules.one_cycle(self.lr, steps),
        }
        schedule = rates[self.schedule]()
        return schedules.warmed_up(schedule, self.warmup) if self.warmup else schedule
