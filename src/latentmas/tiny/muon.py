"""Muon in float32: momentum whose matrices are made orthogonal before they are applied.

torch has a Muon, but it computes in bfloat16, which small matrices on a CPU neither need nor get faster by.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon over matrices, which are stacked by shape so that a step is a few large products."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, rounds: int = 5) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "rounds": rounds})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates: list[Tensor] = []
                for matrix in matrices:
                    assert matrix.grad is not None
                    state = self.state[matrix]
                    velocity = state.setdefault("velocity", torch.zeros_like(matrix))
                    velocity.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(velocity, group["momentum"]))
                turned = orthogonal(torch.stack(updates), group["rounds"])
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, update in zip(matrices, turned, strict=True):
                    matrix.sub_(update, alpha=scale)


def orthogonal(stack: Tensor, rounds: int) -> Tensor:
    """Return matrices ``[N, R, C]`` with the same singular vectors and singular values near 1."""
    a, b, c = _COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    turned: Tensor = x.transpose(1, 2) if tall else x
    return turned
