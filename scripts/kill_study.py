"""Kill a study of many runs in its middle, twice, let it go on, and see that no run is lost or repeated.

    python scripts/kill_study.py --runs 200 --kills 2

The study is `pollard study` in a process group of its own, all of which gets SIGKILL once a third, then two thirds of
its runs are finished. At the end every run must have a result, equal to that of the same study left alone but for what clocks
measure; and the results that were there when it was killed must be untouched.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEASURED = ("seconds_per_step", "peak_rss_bytes", "baseline_rss_bytes")
STUDY = """
title = "To be killed"

[recipe]
data = "digits"
model = "mlp-64-32-10"
epochs = 2

[grid]
density = [0.5, 0.2]
seed = {seeds}
"""


def start(study: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """`pollard study` in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "pollard",
        "study",
        str(study),
        "--out",
        str(out),
        f"--workers={workers}",
        "--json",
    ]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def results(out: Path) -> dict[str, Path]:
    """The results that are there, by run."""
    return {path.parent.name: path for path in out.glob("*/result.json")}


def outcome(path: Path) -> dict[str, Any]:
    """A result, without what is measured."""
    told = json.loads(path.read_text("utf-8"))
    return {name: value for name, value in told.items() if name not in MEASURED}


def kill_after(process: subprocess.Popen[bytes], out: Path, finished: int) -> dict[str, int]:
    """Kill the study and its workers once so many runs are finished; when each result of then was written."""
    while len(results(out)) < finished and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        sys.exit(f"the study ended before {finished} runs were finished: exit status {process.returncode}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # workers notice that the study is gone
    return {run: path.stat().st_mtime_ns for run, path in results(out).items()}


def main() -> None:
    """Run, kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pollard-kill-study-") as folder:
        work = Path(folder)
        study = work / "study.toml"
        study.write_text(STUDY.format(seeds=list(range(given.runs // 2))), "utf-8")
        whole, killed = work / "whole", work / "killed"
        if start(study, whole, given.workers).wait():
            sys.exit("the undisturbed study failed")
        expected = {run: outcome(path) for run, path in results(whole).items()}
        print(f"undisturbed: {len(expected)} runs")
        stamps: dict[str, int] = {}
        for kill in range(1, given.kills + 1):
            process = start(study, killed, given.workers)
            stamps |= kill_after(process, killed, given.runs * kill // (given.kills + 1))
            print(f"kill {kill}: {len(stamps)} runs were finished")
        if start(study, killed, given.workers).wait():
            sys.exit("the killed study failed in the end")
        found = {run: outcome(path) for run, path in results(killed).items()}
        repeated = [run for run, stamp in stamps.items() if (killed / run / "result.json").stat().st_mtime_ns != stamp]
        different = [run for run in expected if found.get(run) != expected[run]]
        if found.keys() != expected.keys() or repeated or different:
            sys.exit(
                f"{len(expected)} runs expected, {len(found)} found, {len(repeated)} repeated, {len(different)} differ"
            )
        print(f"{len(found)} runs after {given.kills} kills: none lost, none repeated, all results equal")


if __name__ == "__main__":
    main()
