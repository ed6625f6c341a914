"""What SynFlow in one round leaves of ResNet-20 at 10 %, layer by layer, and whether any signal still passes; networks as `resnet_cifar.py` draws them.

    python benchmarks/synflow_cut.py [--seeds 40] [--out benchmarks/records/synflow-cut.json]

A signal passes if ones come out as anything but 0 once all weights are positive, biases 0, and norms leave it as it is.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from resnet_cifar import DENSITIES, network
from torch import Tensor

import pollard
from pollard.errors import LayerCollapse
from pollard.networks.residual import ResNet
from pollard.pruning.scoring import Scoring

RECORD = Path(__file__).parent / "records" / "synflow-cut.json"
INPUTS = torch.ones(1, 3, 32, 32)


def kept(model: ResNet) -> dict[str, int]:
    """Prune the network; how many weights of each layer are left."""
    batch = (INPUTS, torch.zeros(1, dtype=torch.int64))  # only its shape is looked at
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapse)
        plan = pollard.prune(
            model, "synflow", DENSITIES[0], batch, rounds=1, allocation="global", scoring=Scoring(mode="eval")
        )
    pollard.sparsify_(model, plan, storage="masked")
    return {name: topology.nnz for name, topology in plan.items()}


@torch.no_grad()
def passes(model: ResNet) -> bool:
    """Whether what goes in makes a difference to what comes out."""
    for own in model.parameters():
        own.abs_()
    out: Tensor = model.eval()(INPUTS)
    return bool(out.any())


def row(seed: int) -> dict[str, object]:
    """Of one network."""
    model = network(seed)
    layers = kept(model)
    return {"seed": seed, "passes": passes(model), "kept": layers}


def main() -> None:
    """Count, write the record, and print what it comes to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    rows = [row(seed) for seed in range(given.seeds)]
    given.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(f"{sum(not each['passes'] for each in rows)} of {len(rows)} networks are cut in two")


if __name__ == "__main__":
    main()
