"""Where methods come from, as BibTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files


@cache
def citations() -> dict[str, str]:
    """BibTeX key to entry, of everything that Pollard implements.

    >>> citations()["lee2019snip"].splitlines()[0]
    '@inproceedings{lee2019snip,'
    """
    text = files("pollard.pruning").joinpath("citations.bib").read_text("utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text)]
    return {re.split(r"[{,]", entry, maxsplit=2)[1]: entry for entry in entries}


def cited(keys: Iterable[str]) -> str:
    """The entries of these keys, once each, in order; an empty key, of what is not published, is left out.

    >>> cited([""])
    ''
    """
    return "\n\n".join(citations()[key] for key in dict.fromkeys(keys) if key)
