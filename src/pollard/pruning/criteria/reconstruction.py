"""Layer by layer: keep what reproduces the layer's outputs best, and let the kept weights make up for the rest.

The outputs `W X` of a layer change by `d X` when its weights change by d: the loss of each row, a mean over the n samples, is
`1/2 d^T H d` with `H = 2 X X^T / n`, the same for all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.pruning.criteria.criterion import criterion
from pollard.pruning.masks import best_grains, shares

DAMPING = 0.01
BLOCK = 128
# Grains of a layer whose inverse Hessians are worked on at a time: bounds memory at 8 bytes x this x in^2.
GROUPS_AT_ONCE = 4


def hessian(input_gram: Tensor) -> Tensor:
    """`2 X X^T / n`, damped by 1 % of its mean diagonal; an input that is always zero gets a diagonal of 1.

    It is a mean: beside a sum, that 1 would weigh less the more samples there are.
    """
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
    losses = torch.cat([_losses(part, curvature, pattern) for part in grouped.split(GROUPS_AT_ONCE)])
    # What must not be kept is zero, goes first, and costs nothing; nor may it win a tie.
    positions = best_grains(losses.masked_fill(~allowed, -torch.inf).flatten(), count, pattern)
    kept = torch.zeros(losses.numel(), dtype=torch.bool, device="cpu")
    kept[positions] = True
    columns = kept.view(losses.shape).repeat_interleave(pattern.columns, 1)
    refitted = [least_squares(rows, mask, curvature) for rows, mask in zip(grouped, columns, strict=True)]
    return positions, torch.stack(refitted).flatten(0, 1)


def _losses(weight: Tensor, curvature: Tensor, pattern: Pattern) -> Tensor:
    """For each grain `(groups, width)`, the loss of the step that removes it from its row group, never falling along steps.

    Under `N:M`, infinite for the n of every m that no step may remove.
    """
    groups, width = len(weight), weight.shape[2] // pattern.columns
    left = _Left(weight.clone(), torch.linalg.inv(curvature).repeat(groups, 1, 1), pattern)
    losses = weight.new_full((groups, width), torch.inf)
    worst = weight.new_zeros(groups)
    for _ in range(width - (width // pattern.m * pattern.n if pattern.m else 0)):
        grain, loss = left.remove_cheapest()
        # A later step may cost less than one before it, but can only be taken after it: it counts as just more.
        worst = torch.maximum(worst.nextafter(worst + 1), loss)
        losses[left.each, grain] = worst
    return losses


class _Left:
    """What is left of each row group: its weights `(groups, rows, n C)`, inverse Hessian `(groups, n C, n C)` and n grains."""

    def __init__(self, weight: Tensor, inverse: Tensor, pattern: Pattern) -> None:
        self.weight, self.inverse, self.pattern = weight, inverse, pattern
        groups, width = len(weight), weight.shape[2] // pattern.columns
        self.each = torch.arange(groups, dtype=torch.int64, device="cpu")
        self.grains = torch.arange(width, dtype=torch.int64, device="cpu").repeat(groups, 1)
        self.gone = torch.zeros_like(self.grains, dtype=torch.bool)
        # Under N:M, how many of every m have gone.
        self.lost = self.grains.new_zeros(groups, -(-width // (pattern.m or width)))
        self.steps = 0

    def remove_cheapest(self) -> tuple[Tensor, Tensor]:
        """Takes the cheapest grain out of each group; its place in the row, and what it cost."""
        loss, place = self._costs().masked_fill(self._held(), torch.inf).min(1)
        # The columns of each grain, and what of the inverse is theirs.
        within = torch.arange(self.pattern.columns, dtype=torch.int64, device="cpu")
        own = place[:, None] * self.pattern.columns + within
        rows = self.inverse[self.each[:, None], own]
        scaled = _over(rows[self.each[:, None], :, own].mT, rows)
        self.weight -= self.weight.gather(2, own[:, None, :].expand(-1, self.weight.shape[1], -1)) @ scaled
        self.inverse.baddbmm_(rows.mT, scaled, alpha=-1)
        self.gone[self.each, place] = True
        grain = self.grains[self.each, place]
        if self.pattern.m:
            self.lost[self.each, grain // self.pattern.m] += 1
        self.steps += 1
        # Arrays shrink with what is left: a third of the work of leaving them as they are.
        if self.steps >= max(8, self.gone.shape[1] // 8):
            self._compact()
        return grain, loss

    def _costs(self) -> Tensor:
        """`1/2 sum over rows of w^T ([H^-1] of the grain)^-1 w`, `(groups, n)`."""
        n, columns = self.grains.shape[1], self.pattern.columns
        own = self.inverse.unflatten(1, (n, columns)).unflatten(3, (n, columns)).diagonal(dim1=1, dim2=3).movedim(3, 1)
        if columns > 1:
            # Of what has gone nothing is left to be divided by.
            own = own + torch.eye(columns, dtype=own.dtype, device="cpu") * self.gone[:, :, None, None]
        weight = self.weight.unflatten(2, (n, columns)).movedim(2, 1)
        costs: Tensor = (weight * _over(own, weight.mT).mT).sum((2, 3)) / 2
        return costs

    def _held(self) -> Tensor:
        if not self.pattern.m:
            return self.gone
        spent = self.lost.gather(1, self.grains // self.pattern.m) >= self.pattern.m - self.pattern.n
        return self.gone | spent

    def _compact(self) -> None:
        groups, rows, _ = self.weight.shape
        places = (~self.gone).nonzero()[:, 1].view(groups, -1)
        self.grains, self.gone = self.grains.gather(1, places), self.gone.gather(1, places)
        within = torch.arange(self.pattern.columns, dtype=torch.int64, device="cpu")
        columns = (places[:, :, None] * self.pattern.columns + within).flatten(1)
        n = columns.shape[1]
        self.weight = self.weight.gather(2, columns[:, None, :].expand(groups, rows, n))
        inside = self.inverse.gather(1, columns[:, :, None].expand(groups, n, self.inverse.shape[2]))
        self.inverse = inside.gather(2, columns[:, None, :].expand(groups, n, n))
        self.steps = 0


def _over(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix^-1 right`; what has gone is zero in both."""
    if matrix.shape[-1] == 1:
        return right / matrix.clamp_min(1e-300)
    found: Tensor = torch.linalg.solve(matrix, right)
    return found


def least_squares(weight: Tensor, kept: Tensor, curvature: Tensor) -> Tensor:
    """The rows `(rows, in)` that lose least of `weight`'s outputs with only the `kept` columns: `w_S = H_SS^-1 H_S w`.

    Source: Frantar, Alistarh, SparseGPT, ICML 2023, eq. 2.
    """
    fitted = torch.zeros_like(weight)
    if kept.any():
        wanted = weight @ curvature[:, kept]
        fitted[:, kept] = torch.linalg.solve(curvature[kept][:, kept], wanted.T).T
    return fitted


@criterion(needs=("weight", "input_gram"), allocation="uniform", cite="frantar2023sparsegpt")
def sparsegpt(weight: Tensor, input_gram: Tensor) -> Tensor:
    """Score `w_ij^2 / U_jj^2` with U the upper Cholesky factor of `H^-1`: OBS as if columns left from left to right.

    `sparsegpt.solve` goes over blocks of 128 columns: it chooses a block's share of the grains by that score, sets the
    others to zero, and lets all columns to the right make up for each error before they are chosen in turn. Weights
    compete within their block of columns, each of the same density.
    Source: Frantar, Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, ICML 2023,
    algorithm 1.

    >>> sparsegpt(weight=torch.tensor([[2.0, 1.0]]), input_gram=torch.eye(2) / 2.02).round(decimals=4)
    tensor([[4., 1.]], dtype=torch.float64)
    """
    return heard(weight, input_gram).square() / _factor(input_gram).diagonal().square()


@sparsegpt.solved_by
def _sweep(weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, input_gram: Tensor) -> tuple[Tensor, Tensor]:
    sweep = _Sweep(heard(weight, input_gram), _factor(input_gram), pattern, allowed)
    unit = pattern.m or pattern.columns
    blocks = [slice(start, start + BLOCK // unit * unit) for start in range(0, weight.shape[1], BLOCK // unit * unit)]
    rooms = torch.stack([sweep.room(block) for block in blocks])
    for block, share in zip(blocks, shares(count, rooms), strict=True):
        sweep.over(slice(block.start, min(block.stop, weight.shape[1])), share)
    return sweep.mask.flatten().nonzero().flatten(), sweep.weight


class _Sweep:
    """A weight that is gone over from left to right; what is kept of it so far is in `mask`, by grain."""

    def __init__(self, weight: Tensor, factor: Tensor, pattern: Pattern, allowed: Tensor) -> None:
        self.weight, self.factor, self.pattern, self.allowed = weight, factor, pattern, allowed
        self.mask = torch.zeros_like(allowed)

    def room(self, block: slice) -> Tensor:
        """How many grains may be kept in a block of columns."""
        return self.allowed[:, self._grains(block)].sum()

    def over(self, block: slice, share: int) -> None:
        """Choose `share` grains of a block of columns, under `N:M` n of every m as they come; let the others' errors pass on."""
        weight, factor, errors = self.weight, self.factor, torch.zeros_like(self.weight[:, block])
        chosen_at_once = self.pattern.m or block.stop - block.start
        for column in range(block.start, block.stop):
            if (column - block.start) % chosen_at_once == 0:
                self._choose(slice(column, column + chosen_at_once), share)
            kept = self.mask[:, column // self.pattern.columns].repeat_interleave(self.pattern.rows)
            error = weight[:, column].masked_fill(kept, 0.0) / factor[column, column]
            weight[:, column : block.stop] -= error[:, None] * factor[column, column : block.stop]
            errors[:, column - block.start] = error
        weight[:, block.stop :] -= errors @ factor[block, block.stop :]

    def _choose(self, part: slice, share: int) -> None:
        scores = self.pattern.grain_sum(self.weight[:, part].square() / self.factor.diagonal()[part].square())
        scores = scores.masked_fill(~self.allowed[:, self._grains(part)], -torch.inf)
        chosen = torch.zeros(scores.numel(), dtype=torch.bool, device="cpu")
        chosen[best_grains(scores.flatten(), share, self.pattern)] = True
        self.mask[:, self._grains(part)] = chosen.view(scores.shape)

    def _grains(self, columns: slice) -> slice:
        return slice(columns.start // self.pattern.columns, columns.stop // self.pattern.columns)


def _factor(input_gram: Tensor) -> Tensor:
    inverse = torch.linalg.inv(hessian(input_gram))
    factor: Tensor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    return factor
