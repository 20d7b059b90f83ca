"""Muon in float32: momentum whose matrices are orthogonalized before they are applied.

torch.optim.Muon orthogonalizes in bfloat16, which a CPU without bfloat16 units computes twenty times slower.
"""

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T of each matrix's singular value decomposition: (n, rows, columns)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    identity = torch.eye(x.shape[1])
    gram, turn = x @ x.mT, identity
    for _ in range(ITERATIONS):  # on the small square matrices: x becomes turn @ x
        factor = a * identity + b * gram + c * gram @ gram
        turn, gram = factor @ turn, factor @ gram @ factor
    x = turn @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """With Nesterov momentum; steps are scaled to the root mean square that AdamW's have, so both share a rate.

    A convolution counts as the matrix that maps a patch to its output channels.
    """

    def __init__(self, weights: list[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for weight in group["params"]:
                shapes[tuple(weight.flatten(1).shape)].append(weight)
            for (rows, columns), weights in shapes.items():
                updates = torch.stack([self._momentum(weight, group["momentum"]) for weight in weights])
                scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for weight, update in zip(weights, orthogonalize(updates), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(weight), alpha=scale)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum).flatten(1)
