"""What the start-up probe reads, and how far the backend is apart from the model itself on it.

The backend reads its own way - ragged rows, padded, in two parts on top of a memory, some of them at late positions -
and the model reads the same tokens in one piece. What begins only beyond a probe's length, sliding windows, is shrunken
for it. What the differences mean is for `verify` to say.

Shape letters: B rows, E hidden size, V vocabulary, H key/value heads, S slots, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from latentmas.alignment import Alignment, NormOnly
from latentmas.backends.hf import architecture
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.memory import LatentMemory
from latentmas.program import Program, Read

_READS: Final = ((19, 5), (6, 2), (2, 9), (9, 1), (1, 8), (14, 3), (3, 12), (7, 7))
"""Lengths of the two Reads of each row. They differ in both, so that padding falls between real tokens."""
_LATE: Final = (2, 5, 7)
"""Rows that begin at late positions, beside others that begin at 0."""
_LATEST: Final = 1 << 14
_SHRUNKEN: Final = 6
"""Width of a sliding window while a probe runs."""


@dataclass(frozen=True, slots=True)
class Differences:
    """How far the backend and the model are apart, or may be, as shares of what is compared.

    Attributes:
        head: Of logits, of the largest one, where both sides start from the same hidden state.
        first: Of a key or value of the first layer, of the usual length there; the largest.
        inner: The same in the layer and row where it is largest, as a root mean square over the slots.
        logits: Of logits after the whole model, of the largest one; the mean over the rows.
    """

    head: float
    first: float
    inner: float
    logits: float


@torch.inference_mode()
def measure(model: LoadedModel) -> Differences:
    """Return how far the backend's way of reading the probe's texts is from the model's own.

    Raises:
        Exception: Whatever an architecture that cannot be run this way makes of it.
    """
    rows = [tokens(model, number, sum(lengths)) for number, lengths in enumerate(_READS)]
    starts = [_late(model) if number in _LATE else 0 for number in range(len(rows))]
    programs = [
        Program((Read(agent="a", tokens=row[:first]), Read(agent="b", tokens=row[first:])))
        for row, (first, _) in zip(rows, _READS, strict=True)
    ]
    with shrunken(model) as probed:
        rollout = rollout_of(probed, programs, starts)
        rollout.run()
        ours = rollout.memory.split_rows()
        theirs = [own(probed, torch.tensor([row]), start) for row, start in zip(rows, starts, strict=True)]
    assert rollout.hidden is not None
    logits, head = model.logits(rollout.hidden), model.logits(torch.cat([own.hidden for own in theirs]))
    wanted = torch.cat([own.logits for own in theirs]).to(head.device)  # [B, V]
    scale = wanted.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
    pairs = list(zip(ours, theirs, strict=True))
    return Differences(
        head=float(((head - wanted).abs() / scale).max()),
        first=apart(pairs, [0], of=torch.max),
        inner=apart(pairs, range(model.layers)),
        logits=float(((logits - wanted).abs() / scale).amax(dim=1).float().mean()),
    )


@dataclass(frozen=True, slots=True)
class Own:
    """What the model itself makes of a text: its cache, its last hidden state ``[1, E]`` and logits ``[1, V]``."""

    cache: Any
    hidden: Tensor
    logits: Tensor

    def keys(self, layer: int) -> Tensor:
        return self.cache.layers[layer].keys  # type: ignore[no-any-return]

    def values(self, layer: int) -> Tensor:
        return self.cache.layers[layer].values  # type: ignore[no-any-return]


def own(model: LoadedModel, ids: Tensor, start: int = 0) -> Own:
    """Return what the model makes of tokens ``[1, S]`` in one piece that begins at position `start`."""
    return _forward(model, ids.shape[1], start, input_ids=ids.to(model.device))


def own_vectors(model: LoadedModel, embeddings: Tensor) -> Own:
    """Return what the model makes of vectors ``[1, S, E]`` in one piece."""
    return _forward(model, embeddings.shape[1], 0, inputs_embeds=embeddings)


def _forward(model: LoadedModel, length: int, start: int, **inputs: Tensor) -> Own:
    from transformers import DynamicCache

    cache = DynamicCache()
    positions = torch.arange(start, start + length, device=model.device)[None]
    caught: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda *seen: caught.append(seen[2].last_hidden_state))
    try:
        output = model.causal(position_ids=positions, past_key_values=cache, use_cache=True, **inputs)
    finally:
        handle.remove()
    return Own(cache, caught[-1][:, -1], output.logits[:, -1])


def rollout_of(
    model: LoadedModel, programs: Sequence[Program], starts: Sequence[int] = (), norm: float = 1.0
) -> Rollout:
    """Return a rollout of programs that has not begun; its rows start at these positions, or at 0."""
    alignment: Alignment = NormOnly(norm, torch.float32)
    rollout = Rollout(model, alignment, [Row(program=program, seed=0) for program in programs])
    if starts:
        rollout.memory.next_position += torch.tensor(starts, device=rollout.memory.device)
    return rollout


def tokens(model: LoadedModel, row: int, length: int) -> tuple[int, ...]:
    """Return a text of its own for each row: tokens from all over the vocabulary, some of them twice."""
    step = 2 * (37 + 11 * row) + 1
    places = range(length)
    return tuple((1 + step * (place % 7) ** 2 + 101 * place + 13 * row) % model.vocabulary for place in places)


def _late(model: LoadedModel) -> int:
    """Return a late position that leaves room for every row."""
    longest = max(sum(lengths) for lengths in _READS)
    return max(0, min(_LATEST, model.context or 1024) - longest)


def rms(lengths: Tensor) -> Tensor:
    """Return the root mean square."""
    return lengths.pow(2).mean().sqrt()


def apart(
    pairs: Sequence[tuple[LatentMemory, Own]], layers: Iterable[int], *, of: Callable[[Tensor], Tensor] = rms
) -> float:
    """Return how far keys and values are apart where they are most so, as a share of the usual length of a slot.

    Args:
        pairs: A memory of one row without padding, and the model's own cache of the same slots.
        of: Makes one number of the differences of a row's slots and heads in one layer.
    """
    found = []
    for memory, own in pairs:
        for layer in layers:
            for ours, theirs in ((memory.keys, own.keys), (memory.values, own.values)):
                exact = theirs(layer).to(torch.promote_types(theirs(layer).dtype, torch.float32))  # [1, H, S, D]
                usual = rms(exact.norm(dim=-1)).clamp_min(1e-9)
                off = (ours(layer).to(exact) - exact).norm(dim=-1)  # [1, H, S]
                found.append(of(off) / usual)
    return float(torch.stack(found).max())  # NaN where there is one


@contextmanager
def shrunken(model: LoadedModel) -> Iterator[LoadedModel]:
    """Make every sliding window so small that a probe is longer; it is the model's own again afterwards."""
    modules = list(model.causal.modules())
    configs = [model.causal.config.get_text_config(), *(getattr(module, "config", None) for module in modules)]
    owners = {id(owner): owner for owner in (*configs, *modules) if owner is not None}  # some copy their configuration
    before = [
        (owner, name, value)
        for owner in owners.values()
        for name in architecture.WINDOW_FIELDS
        if isinstance(value := getattr(owner, name, None), int) and not isinstance(value, bool) and value > 0
    ]
    for owner, name, _ in before:
        setattr(owner, name, _SHRUNKEN)
    try:
        yield replace(model, windows={kind: width and _SHRUNKEN for kind, width in model.windows.items()})
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
