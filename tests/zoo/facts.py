"""What transformers alone shows of a model: whether it could be run, and if not, which fact is in the way.

A refusal is judged by these: the sentence should name the first of them that fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.reference import Reference, cache_of

NEAR = 1e-3
_WORDS = {
    "turns": "keys turn with position",
    "stays": "keys do not depend on position",
    "other": "keys depend on position in another way",
    "shared": "layers without keys of their own",
    "moves in its values": "values depend on position",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """Each is None where the model could not be asked, with the reason in `broken`.

    Attributes:
        layers: Of each layer: ``turns``, ``stays``, ``other`` (its key changes with position otherwise),
            ``moves in its values`` (latent attention keeps the rotated part there), or what is cached
            instead of keys and values for each position.
        embeddings: Input embeddings say all that token ids say.
        thoughts: A vector that is no token's embedding can be read.
        parts: A prompt read in two parts, on a cache, is the prompt read at once.
        padded: A row padded on the left, with its mask and positions, is the row alone.
        relative: Moving all positions changes nothing.
    """

    layers: tuple[str, ...] | None = None
    embeddings: bool | None = None
    thoughts: bool | None = None
    parts: bool | None = None
    padded: bool | None = None
    relative: bool | None = None
    broken: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether an exact backend could run it with what transformers offers."""
        return bool(self.embeddings and self.thoughts and self.parts and self.padded and self.layers and self._keyed)

    @property
    def moves(self) -> bool:
        """Whether its keys can be moved."""
        return self.runs and bool(self.relative) and set(self.layers or ()) <= {"turns", "stays", "shared"}

    @property
    def _keyed(self) -> bool:
        return set(self.layers or ()) <= set(_WORDS)

    def __str__(self) -> str:
        """One line for a table: how what is cached moves, then what is in the way, if anything."""
        kinds = [_WORDS[kind] for kind in dict.fromkeys(self.layers or ()) if kind in _WORDS]
        said = [", ".join(kinds) if self._keyed else "", self.reason]
        if self.runs:
            said.append("positions are relative" if self.relative else "positions are absolute")
        return "; ".join(filter(None, said))

    @property
    def reason(self) -> str:
        """The first fact in the way; empty where there is none."""
        if self.layers is not None and not self._keyed:
            return "layers cache " + ", ".join(sorted(set(self.layers) - set(_WORDS)))
        if self.embeddings is False:
            return "input embeddings do not say all that token ids say"
        if self.thoughts is False:
            return "no thought can be read"
        if self.parts is False:
            return "a prompt in two parts is another prompt"
        if self.padded is False:
            return "padding on the left shows"
        return "; ".join(self.broken)


def facts(reference: Reference, ids: Sequence[int]) -> Facts:
    """Ask a model of transformers."""
    found: dict[str, Any] = {}
    broken = []
    for name, ask in _QUESTIONS.items():
        try:
            found[name] = ask(reference, list(ids))
        except Exception as error:  # noqa: BLE001 - whatever a strange architecture makes of it
            lines = str(error).splitlines() or [""]
            broken.append(f"{name}: {type(error).__name__}: {lines[0][:120]}")
    return Facts(**found, broken=tuple(broken))


def _embeddings(reference: Reference, ids: list[int]) -> bool:
    return reference.difference(ids) < NEAR


@torch.inference_mode()
def _parts(reference: Reference, ids: list[int]) -> bool:
    model, half = reference.model, len(ids) // 2
    whole = reference.logits(ids)
    first = model(input_ids=torch.tensor([ids[:half]]), use_cache=True)
    out = model(
        input_ids=torch.tensor([ids[half:]]),
        past_key_values=cache_of(first),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        position_ids=torch.arange(half, len(ids))[None],
        use_cache=True,
    )
    return _near(out.logits[0, -1], whole)


@torch.inference_mode()
def _padded(reference: Reference, ids: list[int]) -> bool:
    pads = 7
    row = torch.tensor([[5] * pads + ids])
    mask = torch.tensor([[0] * pads + [1] * len(ids)])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    alone = reference.logits(ids)
    given = {"input_ids": row, "attention_mask": mask, "position_ids": positions, "use_cache": False}
    logits = reference.model(**given).logits[0, -1]
    if logits.isnan().any():  # a pad that sees nothing: eager attention in float64 overflows
        reference.model.set_attn_implementation("sdpa")
        logits = reference.model(**given).logits[0, -1]
        reference.model.set_attn_implementation("eager")
    return _near(logits, alone)


@torch.inference_mode()
def _thoughts(reference: Reference, ids: list[int]) -> bool:
    """Whether a vector that is no token's embedding can be read."""
    sequence = reference.embed(ids)
    other = sequence.clone()
    other[:, -1] = (sequence[:, -1] + sequence[:, 0]) / 2
    plain, moved = (reference.whole(one)[1] for one in (sequence, other))
    return not _near(moved, plain) and bool(moved.isfinite().all())


@torch.inference_mode()
def _relative(reference: Reference, ids: list[int]) -> bool:
    return _near(reference.logits(ids, torch.arange(len(ids)) + 50), reference.logits(ids))


@torch.inference_mode()
def _layers(reference: Reference, ids: list[int]) -> tuple[str, ...]:
    caches = [_read_alone(reference, ids[0], position) for position in (0, 9, 18)]
    if not hasattr(caches[0], "layers"):
        return (type(caches[0]).__name__,)
    said = []
    for here, later, last in zip(*(cache.layers for cache in caches), strict=True):
        kind = type(here).__name__
        keys, values = getattr(here, "keys", None), getattr(here, "values", None)
        if kind == "DummyLayer":
            said.append("shared")
        elif "Linear" in kind or not torch.is_tensor(keys) or not torch.is_tensor(values) or keys.dim() != 4:
            said.append(kind)
        elif keys.shape[2] != 1:
            said.append(f"{kind} of {keys.shape[2]} slots for a token")
        elif not _near(later.values, values):
            said.append("moves in its values")
        else:
            said.append(_motion(keys, later.keys, last.keys))
    return tuple(said)


def _motion(here: Tensor, later: Tensor, last: Tensor) -> str:
    """Say how a key changes when its position does, whatever pairs are turned."""
    if _near(later, here):
        return "stays"
    if not _near(later.norm(dim=-1), here.norm(dim=-1)):
        return "other"
    # A turn by 9 twice is a turn by 18, and R + R^-1 is a number for each pair: here + last = 2 cos * later.
    both = here + last
    ratio = (both * later).sum(dim=(0, 1, 2)) / (later * later).sum(dim=(0, 1, 2)).clamp_min(1e-30)  # [D]
    return "turns" if _near(both, ratio * later) and bool((ratio.abs() <= 2 + NEAR).all()) else "other"


def _read_alone(reference: Reference, token: int, position: int) -> Any:
    out = reference.model(input_ids=torch.tensor([[token]]), position_ids=torch.tensor([[position]]), use_cache=True)
    return cache_of(out)


def _near(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= NEAR * float(other.abs().max())


_QUESTIONS = {
    "layers": _layers,
    "embeddings": _embeddings,
    "thoughts": _thoughts,
    "parts": _parts,
    "padded": _padded,
    "relative": _relative,
}
