"""`python -m pollard.recipes RECIPE OUT`: one recipe in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from pollard.errors import PollardError
from pollard.recipes.dense import save_snapshot
from pollard.recipes.parent import end_with_parent
from pollard.recipes.recipe import Recipe
from pollard.recipes.run import run


def main() -> int:
    """Run the recipe that the arguments name; exit status 1 and a message on a Pollard error."""
    parser = argparse.ArgumentParser(prog="python -m pollard.recipes", description="Run one recipe, or go on with it.")
    parser.add_argument("recipe", type=Path, help="a recipe as JSON or TOML")
    parser.add_argument("out", type=Path, help="the folder of run folders")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="where it is trained and scored")
    parser.add_argument("--checkpoint-steps", type=int, default=0, help="checkpoint within epochs too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--wait", action="store_true", help="wait for a process that runs the same recipe")
    parser.add_argument("--snapshot", type=float, metavar="EPOCH", help="only leave a dense network's weights at EPOCH")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this is no longer the parent process")
    parser.add_argument("--error-file", type=Path, help="where to leave the message of an error too")
    given = parser.parse_args()
    manner = {"device": given.device, "progress": not given.quiet, "checkpoint_steps": given.checkpoint_steps}
    if given.parent is not None:
        end_with_parent(given.parent)
    try:
        recipe = Recipe.read(given.recipe)
        if given.snapshot is None:
            run(recipe, given.out, threads=given.threads, wait=given.wait, **manner)
        else:
            torch.set_num_threads(given.threads or torch.get_num_threads())
            save_snapshot(recipe, given.out, given.snapshot, **manner)
    except PollardError as error:
        print(error, file=sys.stderr)
        if given.error_file:
            given.error_file.write_text(str(error), "utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
