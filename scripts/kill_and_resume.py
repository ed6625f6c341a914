"""Kill a training run at random moments, let it go on, and compare what it ends with, bit for bit.

    python scripts/kill_and_resume.py --kills 20 --seed 0

One run goes through undisturbed. Another gets SIGKILL at moments drawn uniformly over its life, from its first
file to its last, and is started again each time; when it has finished, it must have written the same model and the same metrics. Then
it starts afresh, until there have been as many kills as asked for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from pollard.recipes import Recipe, run
from pollard.recipes.folder import MODEL
from pollard.recipes.recipe import MOVING
from pollard.training import read_metrics
from pollard.training.loop import METRICS
from pollard.training.metrics import Number

# Processes are forked off one that has done the imports and nothing else, so that kills meet the run, not its start-up.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED_LATE = ["llvmlite.binding", "safetensors.torch", "scipy.sparse", "sklearn.datasets", "torch._dynamo"]

# What a clock or the operating system decides, not the recipe.
MEASURED = ("seconds", "held_bytes", "peak_rss_bytes", "baseline_rss_bytes")


def outcome(folder: Path) -> tuple[bytes, list[dict[str, Number]]]:
    """The trained model's file and the metrics, without what is measured."""
    lines = read_metrics(folder / METRICS)
    return (folder / MODEL).read_bytes(), [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def work_on(recipe: Recipe, out: Path, checkpoint_steps: int) -> None:
    """Run the recipe, or go on with it: the life of one process."""
    run(recipe, out, progress=False, threads=1, checkpoint_steps=checkpoint_steps)


def live(arguments: tuple[Recipe, Path, int], seconds: float | None = None) -> bool:
    """Start a process on `arguments`, kill it after `seconds`; whether it finished before that."""
    process = PROCESSES.Process(target=work_on, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode not in {0, -signal.SIGKILL}:
        sys.exit(f"a run failed with exit status {process.exitcode}")
    return process.exitcode == 0


def rehearse(recipe: Recipe, work: Path, kills: int, seed: int, checkpoint_steps: int) -> int:
    """Rounds of kills and comparisons; the number of rounds, or an exit where an outcome differs."""
    whole, killed = ((recipe, work / name, checkpoint_steps) for name in ("whole", "killed"))
    PROCESSES.set_forkserver_preload(["__main__", *IMPORTED_LATE])
    live(whole)
    # Once more, for its duration alone: the first one waited for the imports of the process that all are forked off.
    shutil.rmtree(work / "whole")
    started = time.perf_counter()
    live(whole)
    life = time.perf_counter() - started
    print(f"undisturbed: {life:.3f} s")
    expected = outcome(work / "whole" / recipe.digest)
    draw = random.Random(seed)
    done = rounds = 0
    while done < kills:
        shutil.rmtree(work / "killed", ignore_errors=True)
        while done < kills and not live(killed, moment := draw.uniform(0.0, life)):
            done += 1
            print(f"kill {done} after {moment:.3f} s: {reached(work / 'killed')}")
        live(killed)
        rounds += 1
        if outcome(work / "killed" / recipe.digest) != expected:
            sys.exit(f"round {rounds}: the resumed run's model or metrics differ from the undisturbed run's")
    return rounds


def reached(out: Path) -> str:
    """What the run folder in `out` holds."""
    names = sorted(path.name for path in out.glob("*/*") if not path.name.startswith("."))
    epochs = sum(len(read_metrics(path)) for path in out.glob(f"*/{METRICS}"))
    return f"{epochs} epochs, {', '.join(names) or 'nothing yet'}"


def main() -> None:
    """Parse, rehearse, say how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=20, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--data", default="digits", help="what to train on")
    parser.add_argument("--model", default="lenet-300-100", help="the network by name")
    parser.add_argument("--augment", default="", help="changes of training images")
    parser.add_argument("--method", default="snip", help="what to keep")
    parser.add_argument("--update-every", type=int, default=10, help="steps between updates, where the topology moves")
    parser.add_argument("--epochs", type=int, default=20, help="length of the run")
    parser.add_argument("--checkpoint-steps", type=int, default=25, help="steps between checkpoints")
    given = parser.parse_args()
    moving = {"update_every": given.update_every} if given.method in MOVING else {}
    what = {"data": given.data, "model": given.model, "augment": given.augment, "method": given.method, **moving}
    recipe = Recipe(epochs=given.epochs, batch_size=32, optimizer="adam", lr=0.002, **what)
    with tempfile.TemporaryDirectory() as work:
        rounds = rehearse(recipe, Path(work), given.kills, given.seed, given.checkpoint_steps)
    print(f"{given.kills} kills in {rounds} rounds: every resumed run ended with the undisturbed run's bits")


if __name__ == "__main__":
    main()
