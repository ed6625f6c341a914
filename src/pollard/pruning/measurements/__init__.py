"""What criteria look at besides weights, measured on a whole network. A module that exists here joins by being imported."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pollard.pruning.measurements.measurement import COSTS, MEASUREMENTS, Measurement, measurement

__all__ = ["COSTS", "MEASUREMENTS", "Measurement", "measurement"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
