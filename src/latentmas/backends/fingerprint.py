"""Which weights a run used: one digest, the same on every device and on every backend that reads the same bits.

It finds accidents, not forgers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

_CHECKSUM_WORDS: Final = 1 << 22
_ODD: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_END_BYTES: Final = 1 << 20
_VOLATILE: Final = ("dtype", "_name_or_path", "transformers_version", "use_cache", "_attn_implementation")


def digest(config: Mapping[str, object], weights: Iterable[str]) -> str:
    """Return 64 hexadecimal digits over the shape of a model and what `describe_weight` says of its weights.

    Args:
        config: The text configuration as a dictionary; what does not belong to the model is left out.
    """
    shape = {name: value for name, value in config.items() if name not in _VOLATILE}
    found = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    for weight in sorted(weights):
        found.update(weight.encode())
    return found.hexdigest()


def describe_file(path: Path) -> str:
    """Return a line with the name and size of a file of weights, and a digest of its first and last mebibyte.

    For engines that do not let their weights be looked at: it finds another or an unfinished download, not every bit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_END_BYTES)
        file.seek(max(size - _END_BYTES, 0))
        ends += file.read(_END_BYTES)
    return f"{path.name} {size} {hashlib.sha256(ends).hexdigest()}"


def describe_weight(name: str, weight: Tensor) -> str:
    """Return a line with the name, shape and dtype of a tensor, and checksums over every bit of it.

    The sum of all words times odd numbers is computed where the tensor is, in integers, so it is fast on a device and
    the same on all of them.
    """
    return f"{name} {tuple(weight.shape)} {weight.dtype} {_checksums(weight)}"


def _checksums(weight: Tensor) -> list[int]:
    """Return one signed 64-bit sum per chunk of a tensor's bits."""
    if weight.is_meta:  # offloaded by --device_map; what is not in memory cannot be summed
        return []
    flat = weight.detach().contiguous().flatten().view(torch.uint8)
    words = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(torch.int64)
    sums = []
    for start in range(0, words.numel(), _CHECKSUM_WORDS):
        chunk = words[start : start + _CHECKSUM_WORDS]
        odd = torch.arange(chunk.numel(), device=chunk.device) * 2 + 1
        sums.append(int((chunk * odd * _ODD).sum()))
    return sums
