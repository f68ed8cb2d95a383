"""Small forward passes that decide, at the start, whether an architecture is run exactly.

No list of architectures can be complete. So the backend runs a probe its own way - ragged rows, padded, read in two
parts on top of a memory, some of them at late positions - and compares keys, values and logits with the model's own on
the same tokens in one piece. What begins only beyond a probe's length, sliding windows, is shrunken for it. How large a
difference means a fault was measured (`TOLERANCE`), and faults were planted to see them caught.

Keys tell more than logits: those of the first layer depend on token and position alone, so that in any dtype a right
model is nearly bit-identical there and a position that is off by one is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from latentmas.alignment import Alignment
from latentmas.backends.hf import architecture, probe
from latentmas.backends.hf.load import LoadedModel, has_experts
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.rotations import find_ropes
from latentmas.backends.hf.watch import Watch
from latentmas.errors import CapabilityError
from latentmas.memory import LatentMemory
from latentmas.program import Handover, Join, Program, Read, SlotKind, Step, Think, Write
from latentmas.told import place_of

TOLERANCE: Final = {
    torch.float64: probe.Differences(1e-5, 1e-5, 1e-4, 1e-4),
    torch.float32: probe.Differences(1e-4, 1e-4, 1e-3, 1e-3),
    torch.float16: probe.Differences(5e-3, 5e-3, 0.02, 0.01),
    torch.bfloat16: probe.Differences(0.03, 0.02, 0.15, 0.05),
}
"""Set from what `benchmarks/probe.py` prints for real weights, right and with planted faults."""

WATCHED_TOLERANCE: Final = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of an attention output, as a share of its largest value."""

_TURNS: Final = ((9, 4, 13), (4, 7, 3))
"""Lengths of the first and the second Read of each row that takes turns."""


@torch.inference_mode()
def verified(model: LoadedModel, *, thinks: bool = False, joins: bool = False) -> LoadedModel:
    """Return the model with its windows and the rotation of its keys settled.

    Args:
        thinks: Also run a thought, as latent methods will.
        joins: Also concatenate two memories, as independent agents will; refused where keys cannot be moved.

    Raises:
        CapabilityError: The backend and the model disagree about keys, values or logits; says by how much.
    """
    fault: str | None = None
    for candidate in _ways(model):
        found = _fault(candidate)
        if found is None and (width := _given_up(model, candidate)) is not None:
            fault = found = _fault_beyond(candidate, width)
        if found is None:
            model = _with_ropes(candidate)
            break
        fault = fault or found  # of the way the configuration describes
    else:
        raise CapabilityError(f"{model.kind} cannot be run exactly: {fault}; use another model")
    if (found := _fault_of_turns(model, thinks=False)) is not None:
        raise CapabilityError(f"{model.kind} cannot be run exactly: {found}; use another model")
    if thinks and (found := _fault_of_turns(model, thinks=True)) is not None:
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
    tokens = [probe.tokens(model, row, 6 + row) for row in range(2)]
    rollout = probe.rollout_of(model, [Program((Read(agent="a", tokens=own),)) for own in tokens])
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

    A filter may need more slots than that: what fails is run once more, at full length but for its texts.

    Raises:
        CapabilityError: A filter cannot look at what this model keeps; says why.
    """
    for tried in (_in_short(program), _in_short(program, tokens=None, thoughts=None)):
        try:
            Rollout(model, alignment, [Row(program=tried, seed=0)]).run()
        except (torch.OutOfMemoryError, MemoryError):
            return  # says nothing of the filter; the batch makes room, or ends its sample
        except Exception as error:  # noqa: BLE001 - filters are code of strangers
            failed = error
        else:
            return
    if isinstance(failed, CapabilityError):
        raise failed
    kept = ", ".join(dict.fromkeys(str(step.keep) for step in program.flat() if isinstance(step, Handover)))
    raise CapabilityError(
        f"hand-overs that keep {kept} do not work on {model.kind} ({_short(failed)}, {place_of(failed)}); mend the "
        "filter, or use another one"
    ) from failed


def _in_short(program: Program, tokens: int | None = 5, thoughts: int | None = 1) -> Program:
    """Return a program of the same steps that takes next to no time.

    Args:
        tokens: Of each prompt at most; None leaves them.
        thoughts: Of each agent's turn at most; None leaves them.
    """
    steps: list[Step] = []
    for step in program:
        match step:
            case Read():
                steps.append(replace(step, tokens=step.tokens[:tokens], text=""))
            case Think():
                steps.append(step if thoughts is None else replace(step, steps=min(step.steps, thoughts)))
            case Write():
                steps.append(replace(step, max_new_tokens=1))
            case Join():
                branches = tuple(_in_short(branch, tokens, thoughts) for branch in step.branches)
                steps.append(replace(step, branches=branches))
            case _:
                steps.append(step)
    return Program(tuple(steps))


def _ways(model: LoadedModel) -> Iterator[LoadedModel]:
    """Yield the model as its configuration is usually meant, then as some classes take it."""
    yield model
    width = max((width or 0 for width in model.windows.values()), default=0)
    if len(model.windows) > 1:
        yield replace(model, windows={None: width or None})  # Mistral ignores types of layers
    if width:
        yield replace(model, windows=dict.fromkeys(model.windows))  # Llama ignores windows
    if width and len(model.windows) > 1:
        yield replace(model, windows={None: None})  # and both
    if getattr(model.causal.config.get_text_config(), "logits_scaling", 1.0) not in (None, 1.0):
        yield replace(model, divides=False)


def _given_up(model: LoadedModel, candidate: LoadedModel) -> int | None:
    """Return the width of a window that `candidate` gives up; None where no text can be longer."""
    width = max((width or 0 for width in model.windows.values()), default=0)
    if not width or any(candidate.windows.values()) or (model.context is not None and width >= model.context):
        return None
    return width


def _fault_beyond(model: LoadedModel, width: int) -> str | None:
    """Return what a text that is longer than a window shows of it; None where there is none.

    Code that comes with a model may keep its window where nobody can shrink it, and a short text then shows nothing.
    """
    text = probe.tokens(model, 0, width + 8)
    rollout = probe.rollout_of(model, [Program((Read(agent="a", tokens=text[:-8]), Read(agent="b", tokens=text[-8:])))])
    rollout.run()
    off = probe.apart([(rollout.memory, probe.own(model, torch.tensor([text])))], range(model.layers))
    if not off <= _allowed(model).inner:
        return (
            f"its configuration has a sliding window of {width}, and its layers have a window of another kind "
            f"(keys or values of {len(text)} tokens differ by {off:.2g} of their length without one)"
        )
    return None


def _fault(model: LoadedModel) -> str | None:
    """Return in which way the backend and the model disagree about reading; None where they agree."""
    allowed = _allowed(model)
    try:
        found = probe.measure(model)
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


def _allowed(model: LoadedModel) -> probe.Differences:
    """Return the largest differences that are rounding."""
    allowed = TOLERANCE[model.dtype]
    if model.dtype in (torch.float16, torch.bfloat16) and has_experts(model.causal):
        # Rounding sends a token to another expert now and then; the first layer and the head still tell faults.
        return replace(allowed, inner=0.5, logits=0.2)
    return allowed


def _fault_of_turns(model: LoadedModel, *, thinks: bool) -> str | None:
    """Return in which way turns - read, think, write, read - differ from the same vectors read in one piece.

    Args:
        thinks: Turns have latent thoughts.
    """
    tolerance = _allowed(model)
    firsts, seconds = ([probe.tokens(model, row, length) for row, length in enumerate(part)] for part in _TURNS)
    programs = []
    for first, second in zip(firsts, seconds, strict=True):
        steps: list[Step] = [Read(agent="a", tokens=first)]
        steps += [Think(agent="a", steps=2)] if thinks else []
        steps += [Write(agent="a", max_new_tokens=2), Read(agent="b", tokens=second)]
        programs.append(Program(tuple(steps)))
    embedding = model.causal.get_input_embeddings()

    def embed(tokens: Sequence[int]) -> Tensor:
        return embedding(torch.tensor([tokens], device=model.device))  # type: ignore[no-any-return]

    norm = float(embed([token for first in firsts for token in first]).float().norm(dim=-1).mean().clamp_min(1e-6))
    with probe.shrunken(model) as probed:
        endless = replace(probed, stop_tokens=frozenset())
        rollout = probe.rollout_of(endless, programs, norm=norm)
        thoughts = _Kept(rollout.alignment)
        rollout.alignment = thoughts
        rows = list(rollout.rows)
        try:
            rollout.run()
            theirs = []
            for number, (row, first, second) in enumerate(zip(rows, firsts, seconds, strict=True)):
                if row.error is not None:
                    return str(row.error)
                before = embed(first)
                for made in thoughts.made:
                    own = thoughts.alignment(probe.own_vectors(probed, before).hidden)[0].to(made.device)
                    off = float((made[number] - own).float().norm()) / norm
                    if not off <= 2 * tolerance.inner:  # of the hidden state, which differs more than keys do
                        return f"a thought differs by {off:.2g} of its length from that of the model itself"
                    before = torch.cat([before, made[number][None, None].to(before)], dim=1)
                written = embed(row.accounts[-2].written)
                theirs.append(probe.own_vectors(probed, torch.cat([before, written, embed(second)], dim=1)))
        except Exception as error:  # noqa: BLE001 - whatever a strange architecture makes of it
            return f"it takes no vectors in place of tokens ({_short(error)})"
    pairs = list(zip(rollout.memory.split_rows(), theirs, strict=True))
    for off, most in (
        (probe.apart(pairs, [0], of=torch.max), tolerance.first),
        (probe.apart(pairs, range(model.layers)), tolerance.inner),
    ):
        if not off <= most:
            return f"keys or values differ by {off:.2g} of their length from those of the same vectors read at once"
    return None


@dataclass(frozen=True, slots=True)
class _Kept:
    """An alignment that keeps what it made, ``[B, E]`` each."""

    alignment: Alignment
    made: list[Tensor] = field(default_factory=list)

    @property
    def norm(self) -> float:
        return self.alignment.norm

    def __call__(self, hidden: Tensor) -> Tensor:
        self.made.append(self.alignment(hidden))
        return self.made[-1]


def _fault_of_joins(model: LoadedModel) -> str | None:
    """Return in which way a joined memory differs from branches read where they lie; None where it does not."""
    tolerance = _allowed(model)
    parts = [probe.tokens(model, 0, 7), probe.tokens(model, 1, 11)]
    after = probe.tokens(model, 2, 5)
    branches = tuple(Program((Read(agent=name, tokens=part),)) for name, part in zip("ab", parts, strict=True))
    with probe.shrunken(model) as probed:
        rollout = probe.rollout_of(probed, [Program((Join(branches=branches), Read(agent="c", tokens=after)))])
        rollout.run()
        lengths = [len(part) for part in (*parts, after)]
        first, second, third = (
            (part, probe.own(probed, torch.tensor([tokens]), start=sum(lengths[:number])))
            for number, (part, tokens) in enumerate(zip(_cut(rollout.memory, lengths), (*parts, after), strict=True))
        )
    for off, most in (
        (probe.apart([first, second], [0], of=torch.max), tolerance.first),
        (probe.apart([first, second], range(model.layers)), tolerance.inner),
        # Experts change single slots; keys that are not moved are wrong in all of them.
        (probe.apart([first, second], range(model.layers), of=torch.median), TOLERANCE[model.dtype].inner),
    ):
        if not off <= most:
            return f"keys or values that were moved differ by {off:.2g} of their length from those written there"
    # In later layers what is read after a Join depends on all that was joined.
    off = probe.apart([third], [0], of=torch.max)
    if not off <= tolerance.first:
        return f"keys or values read after a Join differ by {off:.2g} of their length from those written there"
    return None


def _cut(memory: LatentMemory, lengths: Sequence[int]) -> Iterator[LatentMemory]:
    """Yield the stretches of one row without padding."""
    place = torch.arange(memory.slots, device=memory.device)
    start = 0
    for length in lengths:
        yield memory.keep((place >= start)[None] & (place < start + length)[None])
        start += length


def _with_ropes(model: LoadedModel) -> LoadedModel:
    """Return the model with the rotation of every layer, or with the reason why it is not known."""
    if (kind := architecture.length_dependent(model.causal.config.get_text_config())) is not None:
        return replace(model, ropes=None, unmovable=f"rotary positions of {model.kind} ({kind}) depend on length")
    ropes = find_ropes(model)
    if isinstance(ropes, str):
        return replace(model, ropes=None, unmovable=ropes)
    return replace(model, ropes=ropes, unmovable="")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
