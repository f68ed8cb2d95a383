"""Rotary position embedding of keys: how a key that was written at one position is turned to another one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding whose frequencies do not depend on length.

    Attributes:
        inverse_frequencies: ``[R/2]`` float32, radians per position.
        interleaved: Pairs are neighbours (GPT-J) instead of the two halves of the rotated part (Llama).
    """

    inverse_frequencies: Tensor
    interleaved: bool = False

    def rotate(self, keys: Tensor, offset: Tensor) -> Tensor:
        """Return keys written at position p as they would be at ``p + offset``.

        The keys' own length (YaRN scales it) is kept: a rotation by an offset has no scale. It is computed in float32,
        or in float64 where the keys are; an offset of 0 changes no bit.

        Args:
            keys: ``[B, H, S, D]``; the first R of D are rotated, the rest pass through.
            offset: Positions, may be negative: ``[B]``, or ``[B, 1, S]`` or ``[B, H, S]`` where each slot moves apart.
        """
        width = 2 * self.inverse_frequencies.numel()
        exact = torch.promote_types(keys.dtype, torch.float32)
        turning, passing = keys[..., :width].to(exact), keys[..., width:]
        if offset.dim() == 1:
            offset = offset[:, None, None]
        angle = offset.to(keys.device, exact)[..., None] * self.inverse_frequencies.to(keys.device, exact)
        cos, sin = angle.cos(), angle.sin()  # [B, 1 or H, 1 or S, R/2]
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        joined = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        return torch.cat([joined.to(keys.dtype), passing], dim=-1)
