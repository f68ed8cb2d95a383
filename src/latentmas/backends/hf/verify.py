"""Small forward passes that decide, at the start, whether an architecture is run exactly.

No list of architectures can be complete. So the backend runs a probe its own way - ragged rows, padded, read in two
parts on top of a memory, some of them at late positions - and compares keys, values and logits with the model's own on
the same tokens in one piece. What begins only beyond a probe's length, sliding windows, is shrunken for it. How large a
difference means a fault was measured (`TOLERANCE`), and faults were planted to see them caught.

Keys tell more than logits: those of the first layer depend on token and position alone, so that in any dtype a right
model is nearly bit-identical there and a position that is off by one is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from latentmas.alignment import Alignment, NormOnly
from latentmas.backends.hf import architecture
from latentmas.backends.hf.load import LoadedModel, has_experts
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.rotations import find_ropes
from latentmas.backends.hf.watch import Watch
from latentmas.errors import CapabilityError
from latentmas.memory import LatentMemory
from latentmas.program import Handover, Join, Program, Read, SlotKind, Step, Think, Write


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


TOLERANCE: Final = {
    torch.float64: Differences(1e-5, 1e-5, 1e-4, 1e-4),
    torch.float32: Differences(1e-4, 1e-4, 1e-3, 1e-3),
    torch.float16: Differences(5e-3, 5e-3, 0.02, 0.01),
    torch.bfloat16: Differences(0.03, 0.02, 0.15, 0.05),
}
"""Set from what `benchmarks/probe.py` prints for real weights, right and with planted faults."""

WATCHED_TOLERANCE: Final = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of an attention output, as a share of its largest value."""

_READS: Final = ((19, 5), (6, 2), (2, 9), (9, 1), (1, 8), (14, 3), (3, 12), (7, 7))
"""Lengths of the two Reads of each row. They differ in both, so that padding falls between real tokens."""
_LATE: Final = (2, 5, 7)
"""Rows that begin at late positions, beside others that begin at 0."""
_LATEST: Final = 1 << 14
_SHRUNKEN: Final = 6
"""Width of a sliding window while a probe runs."""


@torch.inference_mode()
def verified(model: LoadedModel, *, thinks: bool = False, joins: bool = False) -> LoadedModel:
    """Return the model with its windows and the rotation of its keys settled.

    Args:
        thinks: Also run a thought, as latent methods will.
        joins: Also lay two memories end to end, as independent agents will; refused where keys cannot be moved.

    Raises:
        CapabilityError: The backend and the model disagree about keys, values or logits; says by how much.
    """
    fault = ""
    for candidate in _ways(model):
        found = _fault(candidate)
        if found is None:
            model = _with_ropes(candidate)
            break
        fault = fault or found  # of the way the configuration describes
    else:
        raise CapabilityError(f"{model.kind} cannot be run exactly: {fault}; use another model")
    if thinks and (found := _fault_of_thoughts(model)) is not None:
        raise CapabilityError(f"{model.kind} cannot think latent thoughts: {found}; use --method baseline or text_mas")
    if joins:
        if model.ropes is None:
            raise CapabilityError(f"independent agents need keys that can be moved, and {model.unmovable}; use a chain")
        if (found := _fault_of_joins(model)) is not None:
            raise CapabilityError(f"memories of {model.kind} cannot be joined: {found}; use --topology chain")
    return model


@torch.inference_mode()
def check_watch(model: LoadedModel) -> None:
    """Compare attention as it is watched with what the model makes of it, on one small forward pass.

    Raises:
        CapabilityError: They differ, or some layer cannot be watched.
    """
    tokens = [_tokens(model, row, 6 + row) for row in range(2)]
    rollout = _rollout(model, [Program((Read(agent="a", tokens=own),)) for own in tokens])
    rollout.run()
    embeddings, valid = rollout.embed(0)
    watch = Watch(valid, rollout.memory, checks=True)
    rollout.forward(embeddings, valid, ["b", "b"], SlotKind.PROMPT, watch)
    watch.attention(model)
    # Written so that NaN does not pass.
    if not watch.error <= WATCHED_TOLERANCE[model.dtype]:
        raise CapabilityError(
            f"the attention of {model.kind} cannot be watched: its output differs by {watch.error:.2g} of the largest "
            "value from what its queries, keys and values give; use a filter that does not look at attention"
        )


@torch.inference_mode()
def try_handovers(model: LoadedModel, alignment: Alignment, program: Program) -> None:
    """Run the hand-overs of a program once, on prompts of a few tokens and one thought of each agent.

    Raises:
        CapabilityError: A filter cannot look at what this model keeps; says why.
    """
    rollout = Rollout(model, alignment, [Row(program=_in_short(program), seed=0)])
    try:
        rollout.run()
    except CapabilityError:
        raise
    except Exception as error:
        kept = ", ".join(dict.fromkeys(str(step.keep) for step in program.flat() if isinstance(step, Handover)))
        raise CapabilityError(
            f"hand-overs that keep {kept} do not work on {model.kind} ({_short(error)}); use another filter"
        ) from error


def _in_short(program: Program) -> Program:
    """Return a program of the same steps that takes next to no time."""
    steps: list[Step] = []
    for step in program:
        match step:
            case Read():
                steps.append(replace(step, tokens=step.tokens[:5], text=""))
            case Think():
                steps.append(replace(step, steps=min(step.steps, 1)))
            case Write():
                steps.append(replace(step, max_new_tokens=1))
            case Join():
                steps.append(Join(branches=tuple(map(_in_short, step.branches))))
            case _:
                steps.append(step)
    return Program(tuple(steps))


def _ways(model: LoadedModel) -> Iterator[LoadedModel]:
    """Yield the model as its configuration is usually meant, then as some classes take it."""
    yield model
    if any(width is not None for width in model.windows.values()):
        yield replace(model, windows=dict.fromkeys(model.windows))  # Llama ignores windows
    if getattr(model.causal.config.get_text_config(), "logits_scaling", 1.0) not in (None, 1.0):
        yield replace(model, divides=False)


def _fault(model: LoadedModel) -> str | None:
    """Return in which way the backend and the model disagree about reading; None where they agree."""
    allowed = TOLERANCE[model.dtype]
    if model.dtype in (torch.float16, torch.bfloat16) and has_experts(model.causal):
        # Rounding sends a token to another expert now and then; the first layer and the head still tell faults.
        allowed = replace(allowed, inner=0.5, logits=0.2)
    try:
        found = measure(model)
    except Exception as error:  # noqa: BLE001 - whatever a strange architecture makes of it
        return (
            "it does not take masks, positions and a cache the way attention models of transformers do "
            f"({_short(error)})"
        )
    # Each written so that NaN does not pass.
    if not found.head <= allowed.head:
        return f"logits of the same hidden state differ by {found.head:.2g} of the largest one"
    for layers, off, most in (("the first layer", found.first, allowed.first), ("a layer", found.inner, allowed.inner)):
        if not off <= most:
            return (
                f"keys or values of {layers} differ by {off:.2g} of their length between a prompt read in two parts "
                "and the same prompt read at once"
            )
    if not found.logits <= allowed.logits:
        return (
            f"logits differ by {found.logits:.2g} of the largest one between a prompt read in two parts and the same "
            "prompt read at once"
        )
    return None


@torch.inference_mode()
def measure(model: LoadedModel) -> Differences:
    """Return how far the backend's way of reading the probe's texts is from the model's own.

    Raises:
        Exception: Whatever an architecture that cannot be run this way makes of it.
    """
    rows = [_tokens(model, number, sum(lengths)) for number, lengths in enumerate(_READS)]
    starts = [_late(model) if number in _LATE else 0 for number in range(len(rows))]
    programs = [
        Program((Read(agent="a", tokens=row[:first]), Read(agent="b", tokens=row[first:])))
        for row, (first, _) in zip(rows, _READS, strict=True)
    ]
    with _shrunken(model) as probed:
        rollout = _rollout(probed, programs, starts)
        rollout.run()
        ours = rollout.memory.split_rows()
        theirs = [_own(probed, torch.tensor([row]), start) for row, start in zip(rows, starts, strict=True)]
    assert rollout.hidden is not None
    logits, head = model.logits(rollout.hidden), model.logits(torch.cat([own.hidden for own in theirs]))
    wanted = torch.cat([own.logits for own in theirs]).to(head.device)  # [B, V]
    scale = wanted.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
    pairs = list(zip(ours, theirs, strict=True))
    return Differences(
        head=float(((head - wanted).abs() / scale).max()),
        first=_apart(pairs, [0], largest=True),
        inner=_apart(pairs, range(model.layers)),
        logits=float(((logits - wanted).abs() / scale).amax(dim=1).float().mean()),
    )


def _fault_of_thoughts(model: LoadedModel) -> str | None:
    """Return in which way a thought in memory differs from the same vectors read in one piece; None where not."""
    tolerance = TOLERANCE[model.dtype]
    first, second = _tokens(model, 0, 9), _tokens(model, 1, 4)
    program = Program((Read(agent="a", tokens=first), Think(agent="a", steps=1), Read(agent="b", tokens=second)))
    embedding = model.causal.get_input_embeddings()
    norm = float(embedding(torch.tensor([first], device=model.device)).float().norm(dim=-1).mean())
    with _shrunken(model) as probed:
        try:
            rollout = _rollout(probed, [program], norm=norm)
            rollout.run()
            alignment = rollout.alignment
            before, after = (embedding(torch.tensor([part], device=model.device)) for part in (first, second))
            thought = alignment(_own_vectors(probed, before).hidden)[:, None]
            theirs = _own_vectors(probed, torch.cat([before, thought.to(before), after], dim=1))
        except Exception as error:  # noqa: BLE001 - as above
            return f"it takes no vectors in place of tokens ({_short(error)})"
    off = _apart([(rollout.memory, theirs)], range(model.layers))
    if not off <= 2 * tolerance.inner:  # two roundings: that of the thought, and that of what reads it
        return f"keys or values differ by {off:.2g} of their length from those of the same vectors read at once"
    return None


def _fault_of_joins(model: LoadedModel) -> str | None:
    """Return in which way a joined memory differs from branches read where they are laid; None where it does not."""
    tolerance = TOLERANCE[model.dtype]
    parts = [_tokens(model, 0, 7), _tokens(model, 1, 11)]
    branches = tuple(Program((Read(agent=name, tokens=part),)) for name, part in zip("ab", parts, strict=True))
    with _shrunken(model) as probed:
        rollout = _rollout(probed, [Program((Join(branches=branches), Read(agent="c", tokens=parts[0][:2])))])
        rollout.run()
        theirs = _own(probed, torch.tensor([parts[1]]), start=len(parts[0]))
        place = torch.arange(rollout.memory.slots, device=rollout.memory.device)
        moved = rollout.memory.keep((place >= len(parts[0]))[None] & (place < len(parts[0]) + len(parts[1]))[None])
    off = _apart([(moved, theirs)], range(model.layers))
    if not off <= tolerance.inner:
        return f"keys or values that were moved differ by {off:.2g} of their length from those written there"
    return None


def _with_ropes(model: LoadedModel) -> LoadedModel:
    """Return the model with the rotation of every layer, or with the reason why it is not known."""
    if (kind := architecture.length_dependent(model.causal.config.get_text_config())) is not None:
        return replace(model, ropes=None, unmovable=f"rotary positions of {model.kind} ({kind}) depend on length")
    ropes = find_ropes(model)
    if isinstance(ropes, str):
        return replace(model, ropes=None, unmovable=ropes)
    return replace(model, ropes=ropes, unmovable="")


@dataclass(frozen=True, slots=True)
class _Own:
    """What the model itself makes of a text: its cache, its last hidden state ``[1, E]`` and logits ``[1, V]``."""

    cache: Any
    hidden: Tensor
    logits: Tensor

    def keys(self, layer: int) -> Tensor:
        return self.cache.layers[layer].keys  # type: ignore[no-any-return]

    def values(self, layer: int) -> Tensor:
        return self.cache.layers[layer].values  # type: ignore[no-any-return]


def _own(model: LoadedModel, ids: Tensor, start: int = 0) -> _Own:
    return _forward(model, ids.shape[1], start, input_ids=ids.to(model.device))


def _own_vectors(model: LoadedModel, embeddings: Tensor) -> _Own:
    return _forward(model, embeddings.shape[1], 0, inputs_embeds=embeddings)


def _forward(model: LoadedModel, length: int, start: int, **inputs: Tensor) -> _Own:
    from transformers import DynamicCache

    cache = DynamicCache()
    positions = torch.arange(start, start + length, device=model.device)[None]
    caught: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda *seen: caught.append(seen[2].last_hidden_state))
    try:
        output = model.causal(position_ids=positions, past_key_values=cache, use_cache=True, **inputs)
    finally:
        handle.remove()
    return _Own(cache, caught[-1][:, -1], output.logits[:, -1])


def _rollout(model: LoadedModel, programs: Sequence[Program], starts: Sequence[int] = (), norm: float = 1.0) -> Rollout:
    alignment: Alignment = NormOnly(norm, torch.float32)
    rollout = Rollout(model, alignment, [Row(program=program, seed=0) for program in programs])
    if starts:
        rollout.memory.next_position += torch.tensor(starts, device=rollout.memory.device)
    return rollout


def _tokens(model: LoadedModel, row: int, length: int) -> tuple[int, ...]:
    """Return a text of its own for each row: tokens from all over the vocabulary, some of them twice."""
    step = 2 * (37 + 11 * row) + 1
    places = range(length)
    return tuple((1 + step * (place % 7) ** 2 + 101 * place + 13 * row) % model.vocabulary for place in places)


def _late(model: LoadedModel) -> int:
    """Return a late position that leaves room for every row."""
    longest = max(sum(lengths) for lengths in _READS)
    return max(0, min(_LATEST, model.context or 1024) - longest)


def _apart(pairs: Sequence[tuple[LatentMemory, _Own]], layers: Iterable[int], *, largest: bool = False) -> float:
    """Return how far keys and values are apart where they are most so, as a share of the usual length of a slot.

    Args:
        pairs: A memory of one row without padding, and the model's own cache of the same slots.
        largest: Of a single slot; else the root mean square over the slots of a row and layer.
    """
    found = []
    for memory, own in pairs:
        for layer in layers:
            for ours, theirs in ((memory.keys, own.keys), (memory.values, own.values)):
                exact = theirs(layer).to(torch.promote_types(theirs(layer).dtype, torch.float32))  # [1, H, S, D]
                usual = exact.norm(dim=-1).pow(2).mean().sqrt().clamp_min(1e-9)
                off = (ours(layer).to(exact) - exact).norm(dim=-1)  # [1, H, S]
                found.append((off.max() if largest else off.pow(2).mean().sqrt()) / usual)
    return float(torch.stack(found).max())  # NaN where there is one


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@contextmanager
def _shrunken(model: LoadedModel) -> Iterator[LoadedModel]:
    """Make every sliding window so small that a probe is longer; it is the model's own again afterwards."""
    text = model.causal.config.get_text_config()
    owners = [text, *(module for module in model.causal.modules())]
    before = [
        (owner, field, value)
        for owner in owners
        for field in architecture.WINDOW_FIELDS
        if isinstance(value := getattr(owner, field, None), int) and not isinstance(value, bool) and value > 0
    ]
    for owner, field, _ in before:
        setattr(owner, field, _SHRUNKEN)
    try:
        yield replace(model, windows={name: width and _SHRUNKEN for name, width in model.windows.items()})
    finally:
        for owner, field, value in before:
            setattr(owner, field, value)
