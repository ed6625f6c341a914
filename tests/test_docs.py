"""The documentation is run: code blocks, command lines, links, and a docstring on every public name.

In README.md and docs/, the ``python`` blocks of a file run in order, in one namespace and an empty folder. In ``console``
and ``sh`` blocks the lines that begin with ``$ pollard`` run for real, in the same folder. A block that would take too
long stands under ``<!-- not run: reason -->``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

import pollard
from pollard.pruning import CRITERIA
from pollard.pruning.citations import citations
from pollard.training.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL_PAGES = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
MODULES = ["pollard", *(info.name for info in pkgutil.walk_packages(pollard.__path__, "pollard."))]

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)``` *$", re.DOTALL | re.MULTILINE
)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*\Z")
LINK = re.compile(r"\[[^\]]*\]\(<?(?P<target>[^)\s>]+)>?(?: \"[^\"]*\")?\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page: where its code begins, its language and its text."""

    line: int
    language: str
    code: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page that are to be run."""
    return [
        Block(text.count("\n", 0, match.start("code")) + 1, match["language"], textwrap.dedent(match["code"]))
        for match in FENCE.finditer(text)
        if not NOT_RUN.search(text[: match.start()])
    ]


def commands(block: Block) -> list[list[str]]:
    """The `$ pollard ...` lines of a block, each as the words after `pollard`; a backslash carries a line on."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if re.match(r"\$ pollard\b", line)]


def run(page: Path, text: str) -> None:
    """Run the blocks of `page` in order."""
    # What the commands do is covered by tests of their own; coverage's tracing would take a third as long again.
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(text):
        if block.language == "python":
            # Blank lines before the code make a traceback name the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        elif block.language in ("console", "sh"):
            for words in commands(block):
                command = [sys.executable, "-m", "pollard", *words]
                done = subprocess.run(command, env=untraced, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{page.name}:{block.line}: pollard {shlex.join(words)}\n{done.stderr}"


def anchors(page: Path) -> set[str]:
    """The names that headings of `page` can be linked by."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of `page` to a file or heading of this repository that is not there."""
    broken = []
    for match in LINK.finditer(FENCE.sub("", text)):
        target, _, anchor = unquote(match["target"]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page if not target else (page.parent / target).resolve()
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(match["target"])
    return broken


def undocumented(module_name: str) -> list[str]:
    """Public names that the module defines and leaves without a docstring; a dataclass's generated one does not count."""
    module = importlib.import_module(module_name)
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module_name and callable(value)
    }
    without = [name for name, value in own.items() if not (value.__doc__ or "") or value.__doc__.startswith(f"{name}(")]
    return without if module.__doc__ else ["(the module)", *without]


# What Lightning says of itself.
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated.*:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documentation_runs(page):
    run(page, page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_has_a_card_that_runs_it_and_cites_its_source(name):
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "methods"]
    cards = [text for text in texts if any(f'"{name}"' in block.code for block in blocks(text))]
    source = citations().get(CRITERIA[name].cite, "")
    assert any(CRITERIA[name].cite in text for text in cards)
    assert not source or any(source.splitlines()[1].strip().lower() in text.lower() for text in cards)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_card_that_runs_it_and_cites_its_source(name):
    card = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert any(f"pollard.{METHODS[name].__name__}(" in block.code for block in blocks(card))
    key = METHODS[name](0.1, 1000).cite
    source = citations().get(key, "")
    assert key in card
    assert bool(source) == (name != "static")
    assert not source or source.splitlines()[1].strip().lower() in card.lower()
    assert f"(methods/{name}.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_public_name_is_documented(name):
    assert undocumented(name) == []


def test_a_wrong_example_fails(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(AssertionError) as failure:
        run(page, "One\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    assert failure.traceback[-1].lineno + 1 == 8


def test_a_failing_command_fails(tmp_path):
    with pytest.raises(AssertionError, match="no-such-command"):
        run(tmp_path / "page.md", "```console\n$ make demo\n$ pollard no-such-command\n```\n")


def test_a_block_marked_not_run_is_not_run(tmp_path):
    run(tmp_path / "page.md", "<!-- not run: takes an hour -->\n\n```python\nraise SystemExit\n```\n")
    with pytest.raises(SystemExit):
        run(tmp_path / "page.md", "<!-- not run: -->\n```python\nraise SystemExit\n```\n")


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Here and there\n[a](#here-and-there) [b](gone.md) [c](#gone) [d](https://example.org) ![e](page.md)\n"
    )
    assert broken_links(page, page.read_text()) == ["gone.md", "#gone"]
