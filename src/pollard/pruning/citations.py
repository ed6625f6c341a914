"""Where methods come from, as BibTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from pollard.pruning.criteria import CRITERIA


@cache
def citations() -> dict[str, str]:
    """BibTeX key to entry, of everything that Pollard implements.

    >>> citations()["lee2019snip"].splitlines()[0]
    '@inproceedings{lee2019snip,'
    """
    text = files("pollard.pruning").joinpath("citations.bib").read_text("utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text)]
    return {re.split(r"[{,]", entry, maxsplit=2)[1]: entry for entry in entries}


def cited(methods: Iterable[str]) -> str:
    """The entries that runs of these methods should cite, once each, in order; those of unpublished ones are left out.

    >>> cited(["random", "dense"])
    ''
    """
    keys = [CRITERIA[method].cite for method in methods if method in CRITERIA]
    return "\n\n".join(citations()[key] for key in dict.fromkeys(keys) if key)
