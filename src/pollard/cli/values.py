"""Lists and shapes as they are written on a command line."""

from __future__ import annotations

from pollard.errors import InvalidInput


def words(text: str, what: str) -> list[str]:
    """The parts of a comma-separated list, at least one; `what` they are is for the error.

    >>> words("unstructured, v4", "pattern")
    ['unstructured', 'v4']
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise InvalidInput(
            f"{what} {text!r}", "at least one, separated by commas", f"Leave --{what} out for its default."
        )
    return found


def numbers(text: str, what: str) -> list[float]:
    """A comma-separated list of numbers.

    >>> numbers("0.1,0.05", "density")
    [0.1, 0.05]
    """
    found = words(text, what)
    try:
        return [float(part) for part in found]
    except ValueError as error:
        raise InvalidInput(f"{what} {text!r}", "numbers separated by commas", "Write them as in 0.1,0.05.") from error


def counts(text: str, what: str) -> list[int]:
    """A comma-separated list of whole numbers of at least 1.

    >>> counts("1,2", "threads")
    [1, 2]
    """
    found = words(text, what)
    if not _are_counts(found):
        raise InvalidInput(f"{what} {text!r}", "whole numbers above 0, separated by commas", "Write them as in 1,2.")
    return [int(part) for part in found]


def is_shape(text: str) -> bool:
    """Whether `text` is written as sizes are, right or wrong.

    >>> is_shape("64x64x8"), is_shape("64x64"), is_shape("mixer-small")
    (True, True, False)
    """
    return set(text.lower()) <= set("0123456789x")


def shape(text: str) -> tuple[int, int, int]:
    """OUTxINxBATCH.

    >>> shape("4096x1024x128")
    (4096, 1024, 128)
    """
    example = "4096x1024x128 for Linear(1024, 4096) on 128 rows"
    out_features, in_features, batch = _sizes("shape", text, "OUTxINxBATCH", example)
    return out_features, in_features, batch


def convolution(text: str) -> tuple[int, int, int, int]:
    """OUTxCHANNELSxROWSxCOLUMNS of a convolution's weight.

    >>> convolution("64x32x3x3")
    (64, 32, 3, 3)
    """
    example = "64x32x3x3 for Conv2d(32, 64, 3)"
    out, channels, rows, columns = _sizes("shape", text, "OUTxCHANNELSxROWSxCOLUMNS", example)
    return out, channels, rows, columns


def tokens(text: str) -> tuple[int, int]:
    """BATCHxLENGTH of sequences.

    >>> tokens("32x128")
    (32, 128)
    """
    batch, length = _sizes("tokens", text, "BATCHxLENGTH", "1x128 for one sequence of 128 tokens")
    return batch, length


def images(text: str) -> tuple[int, int, int, int]:
    """BATCHxCHANNELSxHEIGHTxWIDTH of images.

    >>> images("32x3x32x32")
    (32, 3, 32, 32)
    """
    example = "1x3x32x32 for one image of three channels, 32 by 32"
    batch, channels, height, width = _sizes("images", text, "BATCHxCHANNELSxHEIGHTxWIDTH", example)
    return batch, channels, height, width


def widths(text: str) -> list[int]:
    """IN-HIDDEN-...-OUT of a fully connected network.

    >>> widths("784-300-100-10")
    [784, 300, 100, 10]
    """
    parts = text.split("-")
    if len(parts) < 2 or not _are_counts(parts):
        raise InvalidInput(f"network {text!r}", "widths from input to output, joined by '-'", "Write 784-300-100-10.")
    return [int(part) for part in parts]


def _sizes(what: str, text: str, form: str, example: str) -> list[int]:
    """As many sizes as `form` names, joined by x; raises InvalidInput for anything else."""
    parts, wanted = text.lower().split("x"), len(form.split("x"))
    if len(parts) != wanted or not _are_counts(parts):
        number = ("two", "three", "four")[wanted - 2]
        raise InvalidInput(f"{what} {text!r}", f"{form}, {number} whole numbers above 0", f"Write {example}.")
    return [int(part) for part in parts]


def _are_counts(parts: list[str]) -> bool:
    return all(part.isdecimal() and int(part) for part in parts)
