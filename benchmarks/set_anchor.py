"""SET beside a fixed random topology and a dense network, as its authors' tutorial sets them: Fashion-MNIST, 2,000 images.

784-1000-1000-1000-10, ReLU, sigmoid outputs, squared error; 2,000 training and 1,000 test images, drawn by
`np.random.seed(0)`, pixels in [0, 1] or, with --inputs standardised, each pixel of mean 0 and deviation 1; an Erdos-Renyi topology with epsilon 13 (2.9 % of the weights); 400 epochs, batches of 40, learning rate
0.05, momentum 0.9, weight decay 2e-4, dropout 0.2; SET drops 30 % an epoch. All weights start from N(0, 0.1^2), as
grown ones do there; the dense network from Glorot's uniform distribution (from He's, its outputs saturate). Test accuracy
after the last epoch, five seeds. Runs that are finished are not repeated, interrupted ones go on. Writes records/set-anchor.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pollard import data
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.training import Examples, Outputs, TrainingOptions, generator, read_metrics, train
from pollard.training.loop import METRICS
from pollard.training.methods import METHODS

RECORD = Path(__file__).parent / "records" / "set-anchor.json"
WIDTHS = (784, 1000, 1000, 1000, 10)
EPSILON, EPOCHS, BATCH, TRAIN, TEST = 13, 400, 40, 2000, 1000
INPUTS = ("unit", "standardised")  # pixels in [0, 1], or each of mean 0 and deviation 1
# Test accuracy in %, mean and deviation over 5 seeds, of the tutorial of the authors' repository.
PUBLISHED = {"static": (80.60, 0.61), "set": (82.56, 0.91), "dense": (81.98, 0.26)}


def examples(inputs: str) -> tuple[Examples, Examples]:
    """The images, scaled as `inputs` says."""
    whole = data.load("fashion-mnist")
    draw = np.random.RandomState(0)
    chosen = [torch.from_numpy(draw.permutation(count)) for count in (len(whole.train_x), len(whole.test_x))]
    train_at, test_at = chosen[0][:TRAIN], chosen[1][:TEST]
    x = whole.train_x[train_at]
    shift, scale = whole.train_x.min(), whole.train_x.max() - whole.train_x.min()
    if inputs == "standardised":
        shift, scale = x.mean(0), x.std(0) + 1e-4
    scaled = [(each - shift) / scale for each in (x, whole.test_x[test_at])]
    return Examples(scaled[0], whole.train_y[train_at]), Examples(scaled[1], whole.test_y[test_at])


def normal(topology: Topology, draw: torch.Generator | None) -> Tensor:
    """Values from N(0, 0.1^2)."""
    return torch.randn(topology.nnz, generator=draw) * 0.1


def layer(method: str, inputs: int, outputs: int, draw: torch.Generator) -> nn.Module:
    """One layer, biases 0: dense, or with an Erdos-Renyi topology of density `epsilon (in + out) / (in out)`."""
    made: nn.Module
    if method == "dense":
        made = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        nn.init.xavier_uniform_(made.weight, generator=draw)
    else:
        density = min(1.0, EPSILON * (inputs + outputs) / (inputs * outputs))
        made = SparseLinear.random(inputs, outputs, density, generator=draw, initialiser=normal)
    nn.init.zeros_(made.bias)
    return made


def network(method: str, seed: int) -> nn.Sequential:
    """ReLU and dropout between the layers, a sigmoid behind the last."""
    draw = generator(seed, "weights")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [layer(method, inputs, outputs, draw), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers[:-2], nn.Sigmoid())


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance to the one-hot target, a mean over examples."""
    wanted = nn.functional.one_hot(target, WIDTHS[-1])
    return (output - wanted).square().sum(1).mean() / 2


def work_on(arguments: tuple[str, int], out: Path, epochs: int, inputs: str) -> tuple[str, int]:
    """Train one network, or go on with it."""
    method, seed = arguments
    torch.set_num_threads(1)
    train_set, test_set = examples(inputs)
    options = TrainingOptions(
        epochs=epochs, batch_size=BATCH, lr=0.05, momentum=0.9, weight_decay=2e-4, schedule="constant", seed=seed
    )
    epoch = TRAIN // BATCH
    moving = None if method == "dense" else METHODS[method](0.029, epochs * epoch, **_once_an_epoch(method, epoch))
    outputs = Outputs(folder=out / inputs / f"{method}-{seed}", identity=f"{method} {seed} {epochs}")
    train(
        network(method, seed), train_set, {"test": test_set}, options,
        method=moving, loss_fn=squared_error, outputs=outputs,
    )  # fmt: skip
    return arguments


def _once_an_epoch(method: str, epoch: int) -> dict[str, int]:
    return {} if method == "static" else {"every": epoch}


def table(out: Path, epochs: int) -> list[dict[str, object]]:
    """Mean and deviation of the last test accuracy over the finished seeds, beside the published ones."""
    rows = []
    for inputs, (method, (mean, deviation)) in product(INPUTS, PUBLISHED.items()):
        lines = [read_metrics(path)[-1] for path in sorted((out / inputs).glob(f"{method}-*/{METRICS}"))]
        lines = [line for line in lines if line["epoch"] == epochs]
        found = [round(100 * line["test_accuracy"], 2) for line in lines]
        if not found:
            continue
        rows.append(
            {
                "method": method,
                "inputs": inputs,
                "test_accuracy_percent": found,
                "mean": round(statistics.mean(found), 2),
                "standard_deviation": round(statistics.stdev(found), 2) if len(found) > 1 else None,
                "explored_rate": round(statistics.mean(line.get("explored_rate", 1.0) for line in lines), 3),
                "epochs": epochs,
                "published": mean,
                "published_standard_deviation": deviation,
            }
        )
    return rows


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/set-anchor"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--inputs", default=INPUTS[0], choices=INPUTS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no record")
    given = parser.parse_args()
    todo = [(method, seed) for method in PUBLISHED for seed in range(given.seeds)]
    with get_context("spawn").Pool(given.workers) as pool:
        for method, seed in pool.imap_unordered(
            partial(work_on, out=given.out, epochs=given.epochs, inputs=given.inputs), todo
        ):
            print(f"{method}, seed {seed}: done", flush=True)
    rows = table(given.out, given.epochs)
    if not given.dry:
        RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
