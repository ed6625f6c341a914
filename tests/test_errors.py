from __future__ import annotations

import copy
import pickle
import warnings

import pytest

from pollard import errors

TEACHING = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.PollardError)
]


@pytest.mark.parametrize("error", TEACHING)
@pytest.mark.parametrize("again", [copy.copy, lambda raised: pickle.loads(pickle.dumps(raised))])
def test_an_error_survives_the_way_to_another_process(error, again):
    raised = again(error("a", "b", "Do c."))
    assert type(raised) is error
    assert (raised.got, raised.expected, raised.fix) == ("a", "b", "Do c.")
    assert str(raised) == "got a; expected b. Do c."


@pytest.mark.parametrize(
    "error, builtin",
    [
        (errors.InvalidInput, ValueError),
        (errors.TopologyError, errors.InvalidInput),
        (errors.StoreError, OSError),
        (errors.DataError, OSError),
        (errors.KernelError, RuntimeError),
        (errors.SettingsError, ValueError),
    ],
)
def test_code_that_expects_a_builtin_error_catches_ours(error, builtin):
    with pytest.raises(builtin):
        raise error("a", "b", "Do c.")


@pytest.mark.parametrize("warning", [errors.KernelFallback, errors.LayerCollapse])
def test_one_filter_silences_every_warning_of_ours(warning):
    with pytest.warns(errors.PollardWarning, match="look"):
        warnings.warn("look", warning, stacklevel=1)
