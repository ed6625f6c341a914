"""Layer by layer: keep what reproduces the layer's outputs best, and let the kept weights make up for the rest.

The outputs `W X` of a layer change by `d X` when its weights change by d: the loss of each row is `1/2 d^T H d` with
`H = 2 X X^T`, the same for all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.pruning.criteria.criterion import criterion
from pollard.pruning.masks import shares, top_positions

DAMPING = 0.01
BLOCK = 128
# Grains of a layer whose inverse Hessians are worked on at a time: bounds memory at 8 bytes x this x in^2.
GROUPS_AT_ONCE = 4


def hessian(input_gram: Tensor) -> Tensor:
    """`2 X X^T`, damped by 1 % of its mean diagonal; an input that is always zero gets a diagonal of 1."""
    found: Tensor = 2 * input_gram.double()
    diagonal = found.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    return found


def heard(weight: Tensor, input_gram: Tensor) -> Tensor:
    """`weight` in float64, zero where its input never is anything else: no output depends on it."""
    return weight.double().masked_fill(input_gram.diagonal() == 0, 0.0)


@criterion(needs=("weight", "input_gram"), cite="frantar2022obc")
def exact_obs(weight: Tensor, input_gram: Tensor) -> Tensor:
    """Score `w_ij^2 / (2 [H^-1]_jj)`: the loss of the layer's outputs when this weight alone goes and all others adapt.

    `exact_obs.solve` removes grain after grain: in each row group the one with the smallest loss, after every other
    weight of its rows has adapted, `w -= H^-1[:, j] w_j / [H^-1]_jj`, and `H^-1` has lost that column. Of all row groups'
    sequences the steps of smallest loss are taken, as many as the layer has to lose. What is kept are then exactly the
    least-squares weights. Rows of a `vN` grain lose their column together, and their losses add up.
    Source: Frantar, Singh, Alistarh, Optimal brain compression, NeurIPS 2022, section 4, algorithm 1.

    >>> exact_obs(weight=torch.tensor([[2.0, 1.0]]), input_gram=torch.eye(2) / 2.02).round(decimals=4)
    tensor([[2.0000, 0.5000]], dtype=torch.float64)
    """
    inverse: Tensor = torch.linalg.inv(hessian(input_gram)).diagonal()
    return heard(weight, input_gram).square() / (2 * inverse)


@exact_obs.solved_by
def _eliminate(
    weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, input_gram: Tensor
) -> tuple[Tensor, Tensor]:
    curvature = hessian(input_gram)
    grouped = heard(weight, input_gram).unflatten(0, (-1, pattern.rows))
    losses = torch.cat([_losses(part, curvature) for part in grouped.split(GROUPS_AT_ONCE)])
    # What must not be kept is zero, goes first, and costs nothing; nor may it win a tie.
    positions = top_positions(losses.masked_fill(~allowed, -torch.inf).flatten(), count)
    kept = torch.zeros(losses.numel(), dtype=torch.bool, device="cpu")
    kept[positions] = True
    refitted = [_refit(rows, mask, curvature) for rows, mask in zip(grouped, kept.view(losses.shape), strict=True)]
    return positions, torch.stack(refitted).flatten(0, 1)


def _losses(weight: Tensor, curvature: Tensor) -> Tensor:
    """For each grain `(groups, in)`, the loss of the step that removes it from its row group, never falling along steps."""
    groups, _, columns = weight.shape
    left = _Left(
        weight.clone(),
        torch.linalg.inv(curvature).repeat(groups, 1, 1),
        torch.arange(columns, dtype=torch.int64, device="cpu").repeat(groups, 1),
    )
    losses = weight.new_zeros(groups, columns)
    worst = weight.new_zeros(groups)
    each = torch.arange(groups, dtype=torch.int64, device="cpu")
    for _ in range(columns):
        column, loss = left.remove_cheapest(each)
        # A later step may cost less than one before it, but can only be taken after it: it counts as just more.
        worst = torch.maximum(worst.nextafter(worst + 1), loss)
        losses[each, column] = worst
    return losses


class _Left:
    """What is left of each row group: its weights `(groups, rows, n)`, inverse Hessian `(groups, n, n)` and columns."""

    def __init__(self, weight: Tensor, inverse: Tensor, columns: Tensor) -> None:
        self.weight, self.inverse, self.columns = weight, inverse, columns
        self.gone = torch.zeros_like(columns, dtype=torch.bool)
        self.steps = 0

    def remove_cheapest(self, each: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the cheapest grain out of each group; its column, and what it cost."""
        diagonal = self.inverse.diagonal(dim1=1, dim2=2).clamp_min(1e-300)
        costs = (self.weight.square().sum(1) / (2 * diagonal)).masked_fill(self.gone, torch.inf)
        loss, place = costs.min(1)
        row = self.inverse[each, place]
        scaled = row / row[each, place].clamp_min(1e-300)[:, None]
        self.weight -= self.weight[each, :, place][:, :, None] * scaled[:, None, :]
        self.inverse.baddbmm_(row[:, :, None], scaled[:, None, :], alpha=-1)
        self.gone[each, place] = True
        column = self.columns[each, place]
        self.steps += 1
        # Arrays shrink with what is left: a third of the work of leaving them as they are.
        if self.steps >= max(8, self.gone.shape[1] // 8):
            self._compact()
        return column, loss

    def _compact(self) -> None:
        groups, rows, _ = self.weight.shape
        places = (~self.gone).nonzero()[:, 1].view(groups, -1)
        n = places.shape[1]
        self.weight = self.weight.gather(2, places[:, None, :].expand(groups, rows, n))
        within = self.inverse.gather(1, places[:, :, None].expand(groups, n, self.inverse.shape[2]))
        self.inverse = within.gather(2, places[:, None, :].expand(groups, n, n))
        self.columns, self.gone = self.columns.gather(1, places), self.gone.gather(1, places)
        self.steps = 0


def _refit(weight: Tensor, kept: Tensor, curvature: Tensor) -> Tensor:
    """The rows `(rows, in)` that lose least of `weight`'s outputs with only the `kept` columns: least squares."""
    fitted = torch.zeros_like(weight)
    if kept.any():
        wanted = weight @ curvature[:, kept]
        fitted[:, kept] = torch.linalg.solve(curvature[kept][:, kept], wanted.T).T
    return fitted


@criterion(needs=("weight", "input_gram"), cite="frantar2023sparsegpt")
def sparsegpt(weight: Tensor, input_gram: Tensor) -> Tensor:
    """Score `w_ij^2 / U_jj^2` with U the upper Cholesky factor of `H^-1`: OBS as if columns left from left to right.

    `sparsegpt.solve` goes over blocks of 128 columns: it chooses a block's share of the grains by that score, sets the
    others to zero, and lets all columns to the right make up for each error before they are chosen in turn. Weights
    compete within their block of columns.
    Source: Frantar, Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, ICML 2023,
    algorithm 1.

    >>> sparsegpt(weight=torch.tensor([[2.0, 1.0]]), input_gram=torch.eye(2) / 2.02).round(decimals=4)
    tensor([[4., 1.]], dtype=torch.float64)
    """
    return heard(weight, input_gram).square() / _factor(input_gram).diagonal().square()


@sparsegpt.solved_by
def _sweep(weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, input_gram: Tensor) -> tuple[Tensor, Tensor]:
    factor = _factor(input_gram)
    weight = heard(weight, input_gram)
    groups, columns = weight.shape[0] // pattern.rows, weight.shape[1]
    mask = torch.zeros(groups, columns, dtype=torch.bool, device="cpu")
    starts = range(0, columns, BLOCK)
    rooms = torch.stack([allowed[:, start : start + BLOCK].sum() for start in starts])
    for start, share in zip(starts, shares(count, rooms), strict=True):
        block = slice(start, min(start + BLOCK, columns))
        scores = pattern.grain_sum(weight[:, block].square() / factor.diagonal()[block].square())
        scores = scores.masked_fill(~allowed[:, block], -torch.inf)
        chosen = mask[:, block].flatten()
        chosen[top_positions(scores.flatten(), share)] = True
        mask[:, block] = chosen.view(scores.shape)
        errors = torch.zeros_like(weight[:, block])
        for column in range(block.start, block.stop):
            kept = mask[:, column].repeat_interleave(pattern.rows)
            error = weight[:, column].masked_fill(kept, 0.0) / factor[column, column]
            weight[:, column : block.stop] -= error[:, None] * factor[column, column : block.stop]
            errors[:, column - start] = error
        weight[:, block.stop :] -= errors @ factor[block, block.stop :]
    return mask.flatten().nonzero().flatten(), weight


def _factor(input_gram: Tensor) -> Tensor:
    inverse = torch.linalg.inv(hessian(input_gram))
    factor: Tensor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    return factor
