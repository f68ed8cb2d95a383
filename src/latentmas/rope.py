"""Rotary position embedding of keys: how a key that was written at one position is turned to another one.

Every layer has a rotation of its own: layers may have different frequencies, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding of one layer, whose frequencies do not depend on length.

    Attributes:
        inverse_frequencies: ``[R/2]`` float32, radians per position; empty where the layer does not rotate keys.
        interleaved: Pairs are neighbours (GPT-J) instead of the two halves of the rotated part (Llama).
        at_end: The rotated part is the last R of D channels instead of the first.
        in_values: The rotated part of keys is kept in the place of values (latent attention: the compressed pair that
            makes keys and values is kept in the place of keys, and does not depend on position).
    """

    inverse_frequencies: Tensor
    interleaved: bool = False
    at_end: bool = False
    in_values: bool = False

    @property
    def width(self) -> int:
        """R: channels of a key that are rotated; 0 where keys stay as they are."""
        return 2 * self.inverse_frequencies.numel()

    def move(self, keys: Tensor, values: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a cache holds of slots written at position p as it would be at ``p + offset``; see `rotate`."""
        if self.in_values:
            return keys, self.rotate(values, offset)
        return self.rotate(keys, offset), values

    def rotate(self, keys: Tensor, offset: Tensor) -> Tensor:
        """Return keys written at position p as they would be at ``p + offset``.

        The keys' own length (YaRN scales it) is kept: a rotation by an offset has no scale. It is computed in float32,
        or in float64 where the keys are; an offset of 0 changes no bit.

        Args:
            keys: ``[B, H, S, D]``; R of D are rotated, the rest pass through.
            offset: Positions, may be negative: ``[B]``, or ``[B, 1, S]`` or ``[B, H, S]`` where each slot moves apart.
        """
        if not self.width:
            return keys
        exact = torch.promote_types(keys.dtype, torch.float32)
        split = keys.shape[-1] - self.width if self.at_end else self.width
        before, after = keys[..., :split], keys[..., split:]
        turning = (after if self.at_end else before).to(exact)
        if offset.dim() == 1:
            offset = offset[:, None, None]
        angle = offset.to(keys.device, exact)[..., None] * self.inverse_frequencies.to(keys.device, exact)
        cos, sin = angle.cos(), angle.sin()  # [B, 1 or H, 1 or S, R/2]
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, dim=-1)
        pairs = (first * cos - second * sin, second * cos + first * sin)
        joined = torch.stack(pairs, dim=-1).flatten(-2) if self.interleaved else torch.cat(pairs, dim=-1)
        turned = joined.to(keys.dtype)
        return torch.cat([before, turned] if self.at_end else [turned, after], dim=-1)


STILL = Rope(torch.empty(0))
"""A layer whose keys do not depend on position."""
