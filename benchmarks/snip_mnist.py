"""SNIP on MNIST beside the published errors: two densities, two scoring batches, three seeds; some three minutes a run.

python benchmarks/snip_mnist.py [--network lenet-300-100 | lenet-5-caffe]

Runs that are finished are not repeated, interrupted ones go on. What there is so far goes into records/snip-mnist.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from pollard.recipes import Recipe, RunResult, run

HERE = Path(__file__).parent
RECORDS = {"lenet-300-100": "snip-mnist.json", "lenet-5-caffe": "snip-lenet-5.json"}
# Test error in %, Lee, Ajanthan and Torr 2019 (table 1), second-hand: without a spread, for one batch of 100.
PUBLISHED = {"lenet-300-100": {0.05: 1.6, 0.02: 2.4}, "lenet-5-caffe": {0.02: 0.8, 0.01: 1.1}}
SCORE_BATCHES = (0, 10_000)
SEEDS = (0, 1, 2)


def recipes(network: str, densities: list[float], batches: tuple[int, ...] = SCORE_BATCHES) -> list[Recipe]:
    """The grid."""
    base = Recipe.read(HERE / "recipes" / RECORDS[network].replace(".json", ".toml"))
    return [
        replace(base, density=density, score_batch=batch, seed=seed)
        for seed in SEEDS
        for batch in sorted(batches, reverse=True)
        for density in densities
    ]


def table(network: str, out: Path) -> list[dict[str, object]]:
    """Mean and spread of the test error over the finished seeds of each setting."""
    rows = []
    for density, published in PUBLISHED[network].items():
        for batch in SCORE_BATCHES:
            grid = [each for each in recipes(network, [density]) if each.score_batch == batch]
            done = [RunResult.read(out / each.digest) for each in grid if (out / each.digest / "result.json").exists()]
            errors = [round(100 * (1 - result.test_accuracy), 2) for result in done]
            if errors:
                rows.append(
                    {
                        "density": density,
                        "score_batch": batch or 100,
                        "test_error_percent": errors,
                        "mean": round(statistics.mean(errors), 2),
                        "standard_deviation": round(statistics.stdev(errors), 2) if len(errors) > 1 else None,
                        "published": published,
                        "density_got": done[0].density,
                        "nnz": done[0].nnz,
                    }
                )
    return rows


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of run folders")
    parser.add_argument("--network", choices=PUBLISHED, default="lenet-300-100")
    parser.add_argument("--density", type=float, nargs="*", help="densities to run (default: the published ones)")
    parser.add_argument(
        "--score-batch", type=int, nargs="*", default=SCORE_BATCHES, help="examples scored on; 0: the paper's 100"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    given = parser.parse_args()
    for recipe in recipes(given.network, given.density or list(PUBLISHED[given.network]), tuple(given.score_batch)):
        result = run(recipe, given.out, threads=given.threads)
        error = 100 * (1 - result.test_accuracy)
        print(f"density {recipe.density}, scored on {recipe.score_batch or 100}, seed {recipe.seed}: {error:.2f} %")
    record = HERE / "records" / RECORDS[given.network]
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps(table(given.network, given.out), indent=2) + "\n")
    print(record.read_text())


if __name__ == "__main__":
    main()
