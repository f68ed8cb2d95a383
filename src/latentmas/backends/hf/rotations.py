"""How each layer of a model rotates its keys, found out on the model itself.

One slot alone attends to itself, so that nothing but rotation tells its key at position p from its key at position 0.
Random vectors are read at several positions; for each layer every candidate - the frequencies the model holds, in each
layout, or none - is asked to rotate the key at 0 to the others. One must fit, and no other may: what cannot tell
layouts apart proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from latentmas.alignment import NormOnly
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.program import Program, Read, SlotKind
from latentmas.rope import STILL, Rope

FITS: Final = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}
"""Largest difference of a rotated key, as `_error` has it. transformers computes angles in float32. In half
precision rounding grows from layer to layer where a slot alone weighs less than 1, beside a sink."""
_APART: Final = 3.0
"""How many times what the best one is off, every other candidate must be off; or what rounding makes of one key."""
_ROUNDING: Final = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.02}
_VECTORS: Final = 8
_POSITIONS: Final = (1, 9, 301, 3001)


def find_ropes(model: LoadedModel) -> tuple[Rope, ...] | str:
    """Return the rotation of every layer; where one is not found, say why as a sentence."""
    slots, positions = _slots(model)
    candidates = list(_candidates(model))
    found: list[Rope] = []
    for layer, (keys, values) in enumerate(slots):
        of_keys, of_values = (_rotation(part, positions, candidates, model.dtype) for part in (keys, values))
        if of_keys is None or of_values is None:
            return f"layer {layer} of {model.kind} rotates keys in a way that is not known"
        if of_keys.width and of_values.width:
            return f"layer {layer} of {model.kind} keeps values that depend on position"
        found.append(replace(of_values, in_values=True) if of_values.width else of_keys)
    return tuple(found)


def _rotation(part: Tensor, positions: list[int], candidates: list[Rope], dtype: torch.dtype) -> Rope | None:
    """Return the one candidate that rotates the keys (or values) at position 0 into all others; None without one."""
    errors = [(_error(rope, part, positions), rope) for rope in candidates if rope.width <= part.shape[-1]]
    error, best = min(errors, key=lambda pair: pair[0])
    # Written so that NaN does not pass.
    if not error <= FITS[dtype]:
        return None
    rival = _APART * max(error, _ROUNDING[dtype])
    rivals = [rope for off, rope in errors if rope is not best and not off > rival]
    return None if any(not _same(best, rope, part.shape[-1]) for rope in rivals) else best


@torch.inference_mode()
def _slots(model: LoadedModel) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
    """Return keys and values of each layer, ``[N, P, H, D]``, of N vectors read alone at P positions, and those."""
    context = model.context or max(_POSITIONS)
    positions = [0, *sorted({min(position, context - 1) for position in _POSITIONS})]
    width = model.causal.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(_VECTORS, width, generator=generator).repeat_interleave(len(positions), dim=0)
    scale = model.causal.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt().clamp_min(1e-3)
    rows = [Row(program=Program((Read(agent="a", tokens=(0,)),)), seed=0) for _ in vectors]
    rollout = Rollout(model, NormOnly(1.0, torch.float32), rows)
    starts = torch.tensor(positions * _VECTORS, device=rollout.memory.device)
    rollout.memory.next_position += starts
    valid = torch.ones(len(rows), 1, dtype=torch.bool, device=model.device)
    embeddings = (vectors.to(model.device) * scale.to(model.device)).to(model.dtype)[:, None]
    rollout.forward(embeddings, valid, "a", SlotKind.PROMPT)
    shape = (_VECTORS, len(positions))
    memory = rollout.memory
    pairs = [(memory.keys(layer)[:, :, 0], memory.values(layer)[:, :, 0]) for layer in range(model.layers)]
    return [
        (keys.reshape(*shape, *keys.shape[1:]), values.reshape(*shape, *values.shape[1:])) for keys, values in pairs
    ], positions


def _candidates(model: LoadedModel) -> Iterator[Rope]:
    yield STILL
    sets: list[Tensor] = []
    for frequencies in _frequencies(model):
        if not any(known.shape == frequencies.shape and torch.equal(known, frequencies) for known in sets):
            sets.append(frequencies)
    for frequencies in sets:
        for turning in (frequencies, -frequencies):  # NanoChat rotates the other way
            for at_end in (False, True):
                for interleaved in (False, True):
                    yield Rope(turning, interleaved=interleaved, at_end=at_end)


def _frequencies(model: LoadedModel) -> Iterator[Tensor]:
    """Yield each set of frequencies the model holds, and what a configuration without such sets means."""
    for name, buffer in model.decoder.named_buffers():
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq") and buffer.dim() == 1 and len(buffer):
            yield buffer.detach().float().cpu().clone()
    text: Any = model.causal.config.get_text_config()
    if width := getattr(text, "rotary_dim", None):
        yield 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)


def _error(rope: Rope, keys: Tensor, positions: list[int]) -> float:
    """Return the difference between rotated and written keys, channel by channel as a share of what is usual there.

    At the worst position; the median over vectors and heads, because rounding may send a vector to another expert. A
    few channels with a large bias (Qwen 2.5) would otherwise be all that counts, and those are ones that hardly turn.

    Args:
        keys: ``[N, P, H, D]``; the first of P is at position 0.
    """
    exact = torch.promote_types(keys.dtype, torch.float32)
    written = keys.to(exact)
    usual = written.pow(2).mean(dim=(0, 1)).sqrt()  # [H, D]
    usual = usual.clamp_min(1e-3 * float(usual.pow(2).mean().sqrt()) + 1e-9)
    worst = 0.0
    for place, position in enumerate(positions[1:], start=1):
        turned = rope.rotate(written[:, :1].transpose(1, 2), torch.full((len(keys),), position))  # [N, H, 1, D]
        off = (turned[:, :, 0] - written[:, place]) / usual
        median = float(off.pow(2).mean(dim=-1).sqrt().median())  # NaN where there is one
        worst = max(median, worst)  # in this order NaN stays
    return worst


def _same(rope: Rope, other: Rope, width: int) -> bool:
    """Return whether two candidates rotate keys of this width alike, however different they are written."""
    probe = torch.randn(1, 1, 8, width, generator=torch.Generator().manual_seed(1))
    offset = torch.tensor([7])
    return torch.allclose(rope.rotate(probe, offset), other.rotate(probe, offset), atol=1e-5)
