"""Eight bits for keys and values while they wait or travel: keys per channel, values per token.

Keys have channels that are large in every slot, values do not (KIVI, arXiv 2402.02750); so a key channel has one range
over all slots of a row, and a value has one range for each slot.

Shape letters: B rows, H key/value heads, S slots, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from torch import Tensor

LEVELS: Final = 255


class Range(Enum):
    """What shares one range of numbers; the value is the axis along which it runs."""

    CHANNEL = 2
    TOKEN = 3


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor as codes between the smallest and the largest number of each range.

    Attributes:
        codes: ``[B, H, S, D]`` uint8.
        low: Smallest number of each range, ``[B, H, 1, D]`` or ``[B, H, S, 1]``.
        step: Distance of neighbouring codes, of the shape of `low`.
        dtype: Of what was packed.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.codes, self.low, self.step))

    def unpack(self) -> Tensor:
        """Return ``[B, H, S, D]`` in the dtype of what was packed; off by half a step at most."""
        return (self.codes * self.step + self.low).to(self.dtype)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the parts by name, for a file."""
        return {"codes": self.codes, "low": self.low, "step": self.step}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Packed:
        """Return what `tensors` of this name said."""
        return cls(tensors[f"{name}.codes"], tensors[f"{name}.low"], tensors[f"{name}.step"], dtype)


def pack(tensor: Tensor, valid: Tensor, by: Range) -> Packed:
    """Return a tensor as int8.

    Args:
        tensor: ``[B, H, S, D]``.
        valid: ``[B, S]`` bool; padding takes no part in a range, and comes back as whatever fits into it.
        by: ``CHANNEL`` has a range for each channel over all slots of a row, ``TOKEN`` one for each slot.
    """
    exact = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    axis = by.value
    if tensor.shape[2] == 0:
        shape = [1 if dim == axis else size for dim, size in enumerate(tensor.shape)]
        low, step = exact.new_zeros(shape), exact.new_ones(shape)
    else:
        real = valid[:, None, :, None]
        low = exact.masked_fill(~real, torch.inf).amin(dim=axis, keepdim=True)
        high = exact.masked_fill(~real, -torch.inf).amax(dim=axis, keepdim=True)
        low, high = (torch.where(low <= high, bound, 0) for bound in (low, high))  # a range without a real slot
        step = ((high - low) / LEVELS).clamp_min(torch.finfo(exact.dtype).tiny)
    codes = ((exact - low) / step).round().clamp(0, LEVELS).to(torch.uint8)
    return Packed(codes, low, step, tensor.dtype)
