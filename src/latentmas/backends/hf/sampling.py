"""Choosing tokens and noise as a function of keys and counters, so that neither batch nor device changes them.

Every random number is a hash of (key, counter, element): there is no stream that another row could advance
(DESIGN law 2). Tokens are drawn by Gumbel-max in float64, which turns rounding in the logits into a change of
token far less often than inverting a cumulative sum does.

Shape letters: B rows, V vocabulary, C candidates, E hidden size.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import torch
from torch import Tensor

from latentmas.program import Sampling

CANDIDATES: Final = 1024
"""The nucleus is looked for among that many of the most likely tokens first; a wider one takes the slow path."""

_MASK_53 = (1 << 53) - 1


def stream_key(seed: int, domain: str, number: int) -> int:
    """Return a signed 64-bit key of its own for each purpose (``write``, ``noise``) and its number in a job."""
    material = f"{seed}/{domain}/{number}".encode()
    return int.from_bytes(hashlib.blake2b(material, digest_size=8).digest(), "big", signed=True)


def uniform(keys: Tensor, counter: int, elements: Tensor) -> Tensor:
    """Return float64 numbers in (0, 1), each a hash of its key, the counter and its element.

    Args:
        keys: ``[B]`` int64.
        elements: ``[B, C]`` or ``[1, C]`` int64.
    """
    mixed = _mix(keys[:, None] + _mix(elements + (counter << 32)))  # [B, C]
    return (((mixed >> 11) & _MASK_53).double() + 0.5) * 2.0**-53


def normal(keys: Tensor, counter: int, width: int) -> Tensor:
    """Return ``[B, width]`` standard normal numbers in float64 (Box-Muller)."""
    elements = torch.arange(width, device=keys.device)[None]
    radius = (-2 * uniform(keys, 2 * counter, elements).log()).sqrt()
    return radius * (2 * math.pi * uniform(keys, 2 * counter + 1, elements)).cos()


def choose(logits: Tensor, sampling: Sampling, keys: Tensor, step: int) -> Tensor:
    """Return one token id per row, ``[B]``.

    Args:
        logits: ``[B, V]``.
        keys: ``[B]`` int64, one stream per row and Write.
        step: Tokens this Write has written before.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    scaled = logits.double() / sampling.temperature
    values, tokens = _candidates(scaled, sampling)
    gumbel = -(-uniform(keys.to(tokens.device), step, tokens).log()).log()
    best = (values + gumbel).argmax(dim=-1, keepdim=True)
    return tokens.gather(1, best).squeeze(1)


def penalized(logits: Tensor, known: Tensor, penalty: float) -> Tensor:
    """Return float32 (or wider) ``[B, V]`` logits in which tokens that are `known` are less likely.

    Args:
        known: ``[B, V]`` bool.
        penalty: Divides a positive logit and multiplies a negative one; above 1 makes a token less likely.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.where(known.to(wide.device), torch.where(wide < 0, wide * penalty, wide / penalty), wide)


def _candidates(scaled: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return values and ids of the tokens that top-k, top-p and min-p leave, ``[B, C]``; the others at minus infinity.

    Membership is decided by value, never by rank: equal logits, common in bf16, are all in or all out, so the order
    in which a device sorts them does not matter.
    """
    vocabulary = scaled.shape[1]
    everything = torch.arange(vocabulary, device=scaled.device).expand_as(scaled)
    if sampling.top_p >= 1 and not sampling.top_k and not sampling.min_p:
        return scaled, everything
    width = min(vocabulary, max(CANDIDATES, sampling.top_k + 1))
    values, tokens = scaled.topk(width, dim=-1)
    threshold = _threshold(values, scaled, sampling)
    # Below the threshold at the last candidate means that nothing beyond it can be in.
    if width < vocabulary and bool((values[:, -1:] >= threshold).any()):
        values, tokens = scaled, everything
        threshold = _threshold(scaled.sort(dim=-1, descending=True).values, scaled, sampling)
    return values.masked_fill(values < threshold, -math.inf), tokens


def _threshold(values: Tensor, scaled: Tensor, sampling: Sampling) -> Tensor:
    """Return the smallest value each row keeps, ``[B, 1]``.

    Args:
        values: ``[B, C]`` the largest values, in descending order.
        scaled: ``[B, V]`` all of them.
    """
    threshold = values.new_full((values.shape[0], 1), -math.inf)
    if 0 < sampling.top_k < scaled.shape[1]:
        threshold = values[:, sampling.top_k - 1 : sampling.top_k]
    if sampling.top_p < 1:
        left = scaled.masked_fill(scaled < threshold, -math.inf)
        probability = (values - left.logsumexp(dim=-1, keepdim=True)).exp().masked_fill(values < threshold, 0)
        before = probability.cumsum(dim=-1) - probability  # mass of the more likely tokens
        inside = before < sampling.top_p
        nucleus = values.masked_fill(~inside, math.inf).amin(dim=-1, keepdim=True)
        threshold = torch.maximum(threshold, nucleus)
    if sampling.min_p:
        threshold = torch.maximum(threshold, values[:, :1] + math.log(sampling.min_p))
    return threshold


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014) on int64, whose products wrap on every device."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
