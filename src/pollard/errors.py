"""Every error Pollard raises on purpose.

::

    PollardError                    got, expected, what to do next
    |-- InvalidInput (ValueError)   an argument is wrong: dtype, shape, device, density, layout, NaN
    |   |-- PatternError            a pattern that cannot be parsed or does not fit the weight
    |   |-- TopologyError           index arrays that do not describe a sparse matrix
    |   `-- NothingMatched          a filter selected no layer
    |-- SettingsError (ValueError)  an environment variable holds a value that cannot be used
    |-- StoreError (OSError)        a file that is truncated, foreign, or cannot be written
    |-- DataError (OSError)         a data set that is missing or damaged
    `-- KernelError (RuntimeError)  code generation or compilation failed

    PollardWarning (UserWarning)
    |-- KernelFallback              a kernel could not be compiled: the slow twin runs instead
    |-- CacheNotTrusted             others could have written what is kept on disk: it is made anew
    |-- WriteLost                   a view of the weight of a sparse layer was written to, which changes nothing
    |-- LeftDense                   layers stay dense beside those that a density was asked of
    |-- OtherDensity                layers that are sparse already keep another density than was asked of them
    |-- SteppedPast                 an optimizer steps past the Sparsifier that waits, or past the layers of now
    |-- NoDecay                     values of sparse layers do not decay, where other weights do
    |-- LayerCollapse               a layer keeps no weight at all
    |-- ScoresTie                   what is kept is decided among scores that are all zero
    `-- NothingMoves                a method that moves the topology has no update in so few steps, or none any more
"""

from __future__ import annotations


class PollardError(Exception):
    """An error that says what was got, what was expected and what to do next.

    >>> str(PollardError("density 0", "a density in (0, 1]", "Pass density=1.0 to keep everything."))
    'got density 0; expected a density in (0, 1]. Pass density=1.0 to keep everything.'
    """

    def __init__(self, got: str, expected: str, fix: str) -> None:
        super().__init__(got, expected, fix)
        self.got, self.expected, self.fix = got, expected, fix

    def __str__(self) -> str:
        return f"got {self.got}; expected {self.expected}. {self.fix}"


class InvalidInput(PollardError, ValueError):
    """An argument has the wrong dtype, shape, device, range or layout."""


class PatternError(InvalidInput):
    """A pattern cannot be parsed, or does not divide the weight it is laid on."""


class TopologyError(InvalidInput):
    """Index arrays do not describe a sparse matrix."""


class NothingMatched(InvalidInput):
    """A name or type filter selected no layer."""


class SettingsError(PollardError, ValueError):
    """An environment variable holds a value that cannot be used."""


class StoreError(PollardError, OSError):
    """A file is truncated, belongs to something else, or cannot be written."""


class DataError(PollardError, OSError):
    """A data set is missing, damaged or incomplete."""


class KernelError(PollardError, RuntimeError):
    """Code generation or compilation failed."""


class PollardWarning(UserWarning):
    """Something a user should know, though work goes on."""


class KernelFallback(PollardWarning):
    """A kernel could not be compiled: the slow twin runs instead."""


class CacheNotTrusted(PollardWarning):
    """Others could have written to the cache on disk: what is in it is not used, and made anew by each process."""


class NothingMoves(PollardWarning):
    """A method that moves the topology has no update in so few steps, or none any more."""


class SteppedPast(PollardWarning):
    """An optimizer steps past what it is meant for: the Sparsifier that waits for its steps, or the layers of now."""


class NoDecay(PollardWarning):
    """Values of sparse layers do not decay, where other weights do."""


class WriteLost(PollardWarning):
    """A tensor was written to that is made of the weights of a sparse layer, and is not where they are kept."""


class LeftDense(PollardWarning):
    """Layers stay dense beside those that a density was asked of; or most of a model does."""


class OtherDensity(PollardWarning):
    """Layers that are sparse already keep another density than was asked of them."""


class LayerCollapse(PollardWarning):
    """A layer keeps no weight at all."""


class ScoresTie(PollardWarning):
    """Scores of zero tie where the cut falls, so that they decide nothing; or a layer has no others, as nothing reaches it."""
