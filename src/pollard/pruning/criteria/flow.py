"""Criteria that keep signals or gradients flowing."""

from __future__ import annotations

from torch import Tensor

from pollard.pruning.criteria.criterion import criterion


@criterion(
    needs=("weight", "hessian_gradient"),
    across_layers=True,
    mode="train",
    temperature=200.0,
    per_class=25,
    cite="wang2020grasp",
    by_row=True,
)
def grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """Score `w * (H g)`: how much of the gradient's squared norm is lost, to first order, when the weight goes.

    A step d changes `g^T g` by `2 d^T H g + O(d^2)`; removing weight q is the step `-w_q`, so what it takes away is
    proportional to `w_q (H g)_q`. What takes away most is kept; what raises the norm by going, goes first. The paper's
    `S(-w) = -w * (H g)` has the other sign, and drops the highest. Outputs are divided by 200 before the loss.
    Source: Wang, Zhang, Grosse, Picking winning tickets before training by preserving gradient flow, ICLR 2020, eq. 8.

    >>> import torch
    >>> grasp(weight=torch.tensor([[3.0, -4.0]]), hessian_gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[ 1.5000, -1.0000]])
    """
    return weight * hessian_gradient


@criterion(
    needs=("weight", "hessian_gradient"),
    across_layers=True,
    mode="train",
    temperature=200.0,
    per_class=10,
    cite="frankle2021pruning",
    by_row=True,
)
def grasp_abs(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """Score `|w * (H g)|`: keep what changes the gradient's norm most, whichever way.

    Source: Frankle, Dziugaite, Roy, Carbin, Pruning neural networks at initialization, ICLR 2021.

    >>> import torch
    >>> grasp_abs(weight=torch.tensor([[3.0, -4.0]]), hessian_gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[1.5000, 1.0000]])
    """
    return (weight * hessian_gradient).abs()


@criterion(needs=("synaptic_flow",), across_layers=True, rounds=100, cite="tanaka2020synflow", by_row=True)
def synflow(synaptic_flow: Tensor) -> Tensor:
    """Score `|w| dR/d|w|`, the part of the flow R through the network that passes this weight; in 100 rounds.

    `R = 1^T (prod_l |W_l|) 1`. What flows into a hidden unit flows out of it, and every layer of a network without biases
    carries the whole of R, so that a layer with fewer weights has higher scores: in rounds, no layer is emptied before
    all others are down to one weight.
    Source: Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively conserving synaptic
    flow, NeurIPS 2020, algorithm 1.

    >>> import torch
    >>> synflow(synaptic_flow=torch.tensor([[3.0, 2.0]]))
    tensor([[3., 2.]])
    """
    return synaptic_flow


@criterion(needs=("kernel_sensitivity",), across_layers=True, rounds=100, cite="wang2023ntksap")
def ntk_sap(kernel_sensitivity: Tensor) -> Tensor:
    """Score how fast the trace of the neural tangent kernel changes as the weight is faded out; in 100 rounds, without data.

    The weights are drawn anew each round: what is scored is the place of a weight, not its value.
    Source: Wang, Li, Sun, NTK-SAP: improving neural network pruning by aligning training dynamics, ICLR 2023.
    """
    return kernel_sensitivity
