"""docs/weights.md, made of the claims that the tests hold."""

from composites.claims import CLAIMS, expected, left_alone, reason
from kinds import DENSE, KINDS
from pollard.report.render import markdown

HEAD = """\
# Kinds of weight

A line is a small network whose weights are of that kind, a column is what is done to them, and each cell is a test: *works*, to the numbers, or *refused*, by an
error that says why before anything is changed. [Weights of other layers](how-to/other-weights.md) says how they are used.
This page is written by `scripts/weights_page.py` from `tests/composites/claims.py`; the tests fail where it is not true.

* Criteria, `snip` to `woodfisher`: the plan keeps as much as was asked for, the model was only looked at, and pruned it computes what the dense network does
  with all other weights at zero, sparse and after `densify_`.
* Methods, `rigl` to `srigl`: ten steps of training, in which the topology moves, end with the weights of the same training under masks.
* `sparsify, densify`: torch's own modules come back, under their names, with the kept weights.
* `state_dict`: loaded by `load_sparse`, from memory and from a file, and into a network of another topology.
* `masked twin`: training on a topology that stays, compressed and with `storage="masked"`.
* `torch.compile`: outputs and gradients, in one graph (`fullgraph=True`, `backend="aot_eager"`).
* `deepcopy`: the same outputs, with numbers of its own.

"""

STAYS = """
## What stays dense

These weights were asked for by name, `layers="within"`; the reason is what the error says. The columns that work are of a network in which
they stand beside a sparse layer.

"""


def page():
    """The whole page."""
    kinds = (*KINDS, *DENSE)
    rows = [[kind, *(expected(kind, column) for column in CLAIMS)] for kind in kinds]
    told = [cell for row in rows for cell in row[1:]]
    counts = ", ".join(f"{told.count(outcome)} {outcome}" for outcome in dict.fromkeys(told))
    table = markdown(["", *CLAIMS], rows, left=len(CLAIMS) + 1)
    size = f"{len(kinds)} kinds, {len(CLAIMS)} columns: {counts}.\n\n"
    notes = markdown(
        ["", "why it is refused", "without `layers=`"],
        [[kind, reason(kind), left_alone(kind)] for kind in DENSE],
        left=3,
    )
    return HEAD + size + table + STAYS + notes
