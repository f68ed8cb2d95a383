"""Hand-overs: what a filter needs is looked up, slots are chosen, dropped, moved and stored, and all of it is measured.

A hand-over is executed with the Read that follows in sight. Where a filter asks what the receiver attends to, its
prompt is read once on trial, on the whole memory, and taken back; it is read again on what was kept, so that a dropped
slot has no part in anything that comes later but the choice itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.sampling import stream_key, uniform
from latentmas.backends.hf.watch import Watch
from latentmas.errors import CapabilityError, LatentMASError
from latentmas.filters import Grain, Need, Sight, choose, needs_of
from latentmas.filters._registry import open_filter
from latentmas.filters.knn import similarity
from latentmas.memory import LatentMemory, Share
from latentmas.program import Handover, Join, Positions, Program, Read, Recall, SlotKind, Step, Storage, Think, Write
from latentmas.protocols import Capture, HandoverAccount, HandoverShare, Similarity

if TYPE_CHECKING:
    from latentmas.backends.hf.rollout import Rollout

ON_TRIAL = frozenset({Need.RECEIVER_ATTENTION, Need.RECEIVER_PEAK})
OF_RECEIVER = ON_TRIAL | {Need.RECEIVER}


def hand_over(rollout: Rollout, number: int) -> tuple[list[HandoverAccount | None], int]:
    """Run the Handover that is step `number` of every row; return what it did to each, and forward passes."""
    step = _handover(rollout.rows[0].steps[number])
    if rollout.sink is not None and Capture.SIMILARITY in rollout.sink.wants:
        _publish_similarity(rollout, number)
    accounts: list[HandoverAccount | None] = [None] * len(rollout.rows)
    passes = 0
    if not step.passes_everything:
        accounts, passes = _cut(rollout, number, step)
    for row in rollout.rows:
        row.handovers += 1
    rollout.attended = None  # the turn is over
    return accounts, passes


def check(program: Program, model: LoadedModel, beside: Sequence[Program] = ()) -> None:
    """Refuse what this model cannot do, by name.

    Args:
        beside: Of a branch: all branches of its Join.

    Raises:
        CapabilityError: Keys cannot be turned, windows need one set of slots, or a filter has nothing to look at.
    """
    for number, step in enumerate(program):
        match step:
            case Join():
                if model.ropes is None:
                    raise CapabilityError(f"a Join moves keys, and {model.unmovable}; use --topology chain")
                for branch in step.branches:
                    check(branch, model, step.branches)
                _check_shared(step)
            case Handover() if not step.passes_everything:
                _check_handover(step, program.steps[number:], model)
                before = program.steps[number - 1]
                if isinstance(before, Recall) and len(before.branches) == 1:
                    before = beside[before.branches[0]].steps[-1]
                if Need.SENDER_ATTENTION in needs_of(open_filter(step.keep)) and not isinstance(
                    before, Read | Think | Write
                ):
                    raise CapabilityError(
                        f"filter {step.keep.name!r} looks at one agent's turn, and none comes right before this "
                        "hand-over: memories were joined or cut; use --filter receiver"
                    )
            case _:
                pass


def drops(program: Program) -> bool:
    """Return whether a hand-over of a program does more than pass everything on."""
    return any(isinstance(step, Handover) and not step.passes_everything for step in program.flat())


def next_read(steps: Iterable[Step]) -> tuple[int, Read] | None:
    """Return the Read that comes next, and where it is; nothing but hand-overs may stand before it."""
    for number, step in enumerate(steps):
        if isinstance(step, Read):
            return number, step
        if not isinstance(step, Handover):
            break
    return None


def looks_at_attention(program: Program) -> bool:
    """Return whether any filter of a program asks what somebody attends to."""
    attention = ON_TRIAL | {Need.SENDER_ATTENTION}
    return any(attention & needs_of(open_filter(step.keep)) for step in program.flat() if isinstance(step, Handover))


def wants_receiver(step: Step) -> bool:
    """Return whether a hand-over reads the next prompt on trial."""
    return isinstance(step, Handover) and bool(ON_TRIAL & needs_of(open_filter(step.keep)))


def wants_sender(steps: Iterable[Step]) -> bool:
    """Return whether the next hand-over asks what its sender attended to; `steps` begin within the sender's turn."""
    ahead = next((step for step in steps if isinstance(step, Handover)), None)
    return ahead is not None and Need.SENDER_ATTENTION in needs_of(open_filter(ahead.keep))


def mean_embedding(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of the real embeddings of each row, ``[B, E]`` in at least float32."""
    exact = torch.promote_types(embeddings.dtype, torch.float32)
    real = valid[:, :, None]
    return (embeddings.to(exact) * real).sum(dim=1) / real.sum(dim=1)


def _handover(step: Step) -> Handover:
    assert isinstance(step, Handover)
    return step


def _has_windows(model: LoadedModel) -> bool:
    return any(window is not None for window in model.windows.values())


def _check_shared(join: Join) -> None:
    """Refuse to keep once what heads of a branch would hold in different numbers.

    What an agent left that an earlier branch holds as well is dropped from a later one; where heads chose among its
    slots and those of others, they would be left with different numbers of slots.
    """
    held: list[set[str]] = []
    choices: list[list[tuple[frozenset[str], Handover, Grain]]] = []  # of each branch: among whom heads chose
    for branch in join.branches:
        _check_joined(branch.recalled, held, choices)
        own = {name for number in branch.recalled for name in held[number]}
        made = [choice for number in branch.recalled for choice in choices[number]]
        for step in branch.flat():
            if isinstance(step, Handover):
                grain = getattr(open_filter(step.keep), "grain", Grain.TOKEN)
                if grain is not Grain.TOKEN:
                    made.append((frozenset(own), step, grain))
            elif not isinstance(step, Join | Recall):
                own.add(step.agent)
        held.append(own)
        choices.append(made)
    _check_joined(join.joined_branches, held, choices)


def _check_joined(
    branches: Sequence[int],
    held: Sequence[set[str]],
    choices: Sequence[Sequence[tuple[frozenset[str], Handover, Grain]]],
) -> None:
    """Refuse to concatenate these branches where heads chose among slots of who comes before and of others."""
    earlier: set[str] = set()
    for number in branches:
        for among, step, grain in choices[number]:
            if among & earlier and among - earlier:
                raise CapabilityError(
                    f"agent {sorted(among & earlier)[0]!r} is heard through two branches of a Join, and filter "
                    f"{step.keep.name!r} chooses for each {grain} among its slots and those of others; use "
                    "--grain token"
                )
        earlier |= held[number]


def _check_handover(step: Handover, steps: Sequence[Step], model: LoadedModel) -> None:
    try:
        filter_ = open_filter(step.keep)
    except LatentMASError as error:
        raise CapabilityError(f"a hand-over cannot keep {step.keep}: {error}") from error
    if step.positions is Positions.REROTATE and model.ropes is None:
        raise CapabilityError(f"--positions rerotate moves keys, and {model.unmovable}; use --positions true")
    needs = needs_of(filter_)
    if needs & OF_RECEIVER and next_read(steps) is None:
        raise CapabilityError(
            f"filter {step.keep.name!r} looks at the agent that reads next, and nobody reads after this hand-over"
        )
    if _has_windows(model):
        kind = model.kind
        if getattr(filter_, "grain", Grain.TOKEN) is not Grain.TOKEN:
            raise CapabilityError(
                f"{kind} has sliding windows, whose masks need one set of slots for all layers; use --grain token"
            )
        if step.positions is Positions.PUBLISHED:
            raise CapabilityError(
                f"{kind} has sliding windows, and --positions published gives slots positions that no window can be "
                "told from; use --positions true or rerotate"
            )


def _cut(rollout: Rollout, number: int, step: Handover) -> tuple[list[HandoverAccount | None], int]:
    memory, filter_ = rollout.memory, open_filter(step.keep)
    sight = _look(rollout, number, needs_of(filter_))
    before, bytes_before = memory.shares(), memory.storage_bytes
    chosen = choose(filter_, step.keep, sight)
    if _has_windows(rollout.model) and (chosen.shape[0] > 1 or chosen.shape[2] > 1):
        raise CapabilityError(
            f"{rollout.model.kind} has sliding windows, and filter {step.keep.name!r} chose for each layer or head; "
            "its scores must have the shape rows x slots"
        )
    trial = sight.receiver_peak is not None
    del sight
    kept = memory.keep(chosen, release=rollout.releases, room=rollout.slots_ahead(number + 1))
    kept.reposition(step.positions, rollout.model.ropes)
    errors: list[tuple[float | None, float | None]] = [(None, None)] * len(rollout.rows)
    after, bytes_after = kept.shares(), kept.storage_bytes
    stored = [sum(share.bytes for share in row) for row in after]
    if step.storage is Storage.INT8:
        packed, of_keys, of_values = kept.through_int8()
        stored = [packed // max(1, len(rollout.rows))] * len(rollout.rows)
        errors = list(zip(of_keys.tolist(), of_values.tolist(), strict=True))
    rollout.memory = kept
    accounts: list[HandoverAccount | None] = []
    for index, row in enumerate(rollout.rows):
        read = next_read(row.steps[number:])
        accounts.append(
            HandoverAccount(
                keep=str(step.keep),
                positions=step.positions.value,
                storage=step.storage.value,
                shares=_shares(before[index], after[index]),
                trial_tokens=len(read[1].tokens) if trial and read else 0,
                storage_before=bytes_before // len(rollout.rows),
                storage_after=bytes_after // len(rollout.rows),
                stored_bytes=stored[index],
                key_error=errors[index][0],
                value_error=errors[index][1],
            )
        )
    return accounts, int(trial)


def _look(rollout: Rollout, number: int, needs: frozenset[Need]) -> Sight:
    """Return what a filter asked for."""
    rows, memory = rollout.rows, rollout.memory
    receiver = attention = peak = None
    if needs & OF_RECEIVER:
        found = next_read(rows[0].steps[number:])
        assert found is not None
        reading = number + found[0]
        if Need.RECEIVER in needs:
            receiver = mean_embedding(*rollout.embed(reading))
        if needs & ON_TRIAL:
            attention, peak = _read_on_trial(rollout, reading, peaks=Need.RECEIVER_ATTENTION not in needs)
    if Need.SENDER_ATTENTION in needs and rollout.attended is None:
        raise CapabilityError("nobody watched what the sender attended to; it has to read after the hand-over before")
    return Sight(
        memory=memory,
        sender=memory.agent_numbers(rollout.agents(number)),
        receiver=receiver,
        receiver_attention=attention,
        receiver_peak=peak,
        sender_attention=rollout.attended if Need.SENDER_ATTENTION in needs else None,
        random=_random(rollout) if Need.RANDOM in needs else None,
    )


def _read_on_trial(rollout: Rollout, reading: int, *, peaks: bool) -> tuple[Tensor | None, Tensor]:
    """Return what the prompts of step `reading` attend to in the memory as it is, ``[L, B, H, S]``: sums and peaks.

    Args:
        peaks: Nobody asks for the sums.
    """
    memory, slots = rollout.memory, rollout.memory.slots
    embeddings, valid = rollout.embed(reading)
    watch = Watch(valid, memory, trial=True, sums=not peaks)
    rollout.forward(embeddings, valid, rollout.agents(reading), SlotKind.PROMPT, watch)
    memory.forget_newest(valid)
    total, peak = watch.attention(rollout.model)
    return None if peaks else total[..., :slots], peak[..., :slots]


def _random(rollout: Rollout) -> Tensor:
    """Return ``[B, S]`` numbers that depend on seed, hand-over and the number of a slot in its row."""
    memory = rollout.memory
    keys = [stream_key(row.seed, "filter", row.handovers) for row in rollout.rows]
    numbers = (memory.valid.long().cumsum(dim=1) - 1).clamp_min(0)
    return uniform(torch.tensor(keys, dtype=torch.long, device=memory.device), 0, numbers)


def _shares(before: Sequence[Share], after: Sequence[Share]) -> tuple[HandoverShare, ...]:
    left = {(share.agent, share.kind): share for share in after}
    shares = []
    for share in before:
        kept = left.get((share.agent, share.kind))
        shares.append(
            HandoverShare(
                agent=share.agent,
                kind=share.kind.name.lower(),
                slots_before=share.slots,
                slots_after=kept.slots if kept else 0,
                bytes_before=share.bytes,
                bytes_after=kept.bytes if kept else 0,
            )
        )
    return tuple(shares)


def _publish_similarity(rollout: Rollout, number: int) -> None:
    """Give the sink the cosine of the next prompt with every key, before anything is dropped between these agents."""
    found = next_read(rollout.rows[0].steps[number:])
    if found is None or (number and isinstance(rollout.rows[0].steps[number - 1], Handover)):
        return
    memory: LatentMemory = rollout.memory
    if not memory.uniform:
        raise CapabilityError("slots that differ from head to head have no picture; choose by --grain token")
    receiver = mean_embedding(*rollout.embed(number + found[0]))
    cosines = torch.stack([similarity(receiver, memory.keys(layer)).cpu() for layer in range(memory.layers)])
    assert rollout.sink is not None
    for index, row in enumerate(rollout.rows):
        real = memory.valid[index]
        rollout.sink.similarity(
            row.key,
            row.handovers,
            Similarity(
                sender=row.agent(number),
                receiver=row.agent(number + found[0]),
                cosines=cosines[:, index, real.cpu()].float(),
                positions=tuple(memory.positions[index, real].tolist()),
                agents=tuple(memory.agent_names[agent] for agent in memory.agents[index, real].tolist()),
                kinds=tuple(memory.kinds[index, real].tolist()),
            ),
        )
