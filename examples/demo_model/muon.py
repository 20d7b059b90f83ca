"""Muon: momentum whose matrices are orthogonalized before they are applied.

torch.optim.Muon knows no convolutions and orthogonalizes in bfloat16 only, which a CPU without bfloat16 units computes
twenty times slower.
"""

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T of each matrix's singular value decomposition: (n, rows, columns), in their own precision."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """With Nesterov momentum; steps are scaled to the root mean square that AdamW's have, so both share a rate.

    A convolution counts as the matrix that maps a patch to its output channels.
    """

    def __init__(
        self,
        weights: list[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for weight in group["params"]:
                shapes[tuple(weight.flatten(1).shape)].append(weight)
            for (rows, columns), weights in shapes.items():
                updates = torch.stack([self._momentum(weight, group["momentum"]) for weight in weights])
                scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                updates = orthogonalize(updates.to(self.precision)).to(updates.dtype)
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(weight), alpha=scale)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum).flatten(1)
