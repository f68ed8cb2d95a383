"""KV filters: what a hand-over keeps. One file is one filter, and its file name is its name: ``filters/knn.py`` is
``--filter knn``.

A filter is any object with `score`: one number for each slot, the higher the sooner it is kept, minus infinity for
what is never passed on. How many are kept (budget) and what is kept in any case (protected slots) is decided here, for
all filters alike:

    Scorer   a file
    Budget   a share of the cache as it stands, or of all it ever held; slots of each agent; slots
    Protect  sinks, newest, thoughts

A filter of one's own is a class in a file outside of the package, ``--filter path.py:Name``, or an entry point of the
group ``latentmas.filters``:

    class Oldest:
        def score(self, sight):
            return -sight.memory.positions.double()

It may have `needs`, a set of `Need`, for what it wants to look at, and parameters in its ``__init__``. The shape of its
scores decides how fine it chooses: ``[B, S]`` one set of slots for all layers and heads, ``[L, B, 1, S]`` one for each
layer, ``[L, B, H, S]`` one for each layer and head.

Shape letters: B rows, L layers, H key/value heads, S slots, E hidden size; P is 1 or L and Q is 1 or H.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from latentmas.errors import CapabilityError, MemoryMismatchError, shown
from latentmas.memory import LatentMemory
from latentmas.program import Budget, KeepSpec, Protect, SlotKind, Unit


class Need(StrEnum):
    """What a filter looks at beside the memory; a backend supplies only what is asked for."""

    RECEIVER = "receiver"
    """The prompt of the agent that reads next, as embeddings."""
    RECEIVER_ATTENTION = "receiver_attention"
    """How much that prompt attends to each slot, summed over its tokens."""
    RECEIVER_PEAK = "receiver_peak"
    """The largest weight any token of that prompt gives each slot."""
    SENDER_ATTENTION = "sender_attention"
    """How much the agent that hands over attended to each slot."""
    RANDOM = "random"


class Grain(StrEnum):
    """For what slots are chosen apart."""

    TOKEN = "token"
    """One set for all layers and heads."""
    LAYER = "layer"
    HEAD = "head"
    """A set for each key/value head of each layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a filter sees at a hand-over. What it did not ask for is None.

    Attributes:
        sender: ``[B]`` number of the agent that hands over.
        receiver: ``[B, E]`` mean input embedding of the next agent's prompt.
        receiver_attention: ``[L, B, H, S]`` attention of the next agent's prompt to each slot, summed over its tokens,
            mean over the query heads that share a key/value head.
        receiver_peak: ``[L, B, H, S]`` the largest weight that any token of it gives a slot, in any of those heads.
        sender_attention: ``[L, B, H, S]`` as `receiver_attention`, of the sender's whole turn: read, thought, written.
        random: ``[B, S]`` uniform numbers in (0, 1) that depend on the sample's seed, the number of the hand-over and
            the number of the slot in its row, and on nothing else.
    """

    memory: LatentMemory
    sender: Tensor
    receiver: Tensor | None = None
    receiver_attention: Tensor | None = None
    receiver_peak: Tensor | None = None
    sender_attention: Tensor | None = None
    random: Tensor | None = None


class Filter(Protocol):
    """Scores slots. May have ``needs: frozenset[Need]``."""

    def score(self, sight: Sight) -> Tensor:
        """Return ``[B, S]`` or ``[P, B, Q, S]``: the higher, the sooner a slot is kept. Padding may get anything."""
        ...


def needs_of(filter_: Filter) -> frozenset[Need]:
    """Return what a filter looks at beside the memory."""
    return frozenset(getattr(filter_, "needs", ()))


def pooled(scores: Tensor, grain: Grain) -> Tensor:
    """Return ``[P, B, Q, S]``: scores of every layer and head, ``[L, B, H, S]``, as fine as slots are chosen."""
    if grain is Grain.HEAD:
        return scores
    scores = scores.mean(dim=2, keepdim=True)
    return scores if grain is Grain.LAYER else scores.mean(dim=0, keepdim=True)


def choose(filter_: Filter, spec: KeepSpec, sight: Sight) -> Tensor:
    """Return what is kept, ``[P, B, Q, S]`` bool, as many slots of a row in every layer and head.

    Protected slots come first, then what the filter scores highest, then the older of two equals; so the choice does
    not depend on the batch. Where a budget counts slots of each agent, what is inside of it comes before what is not.

    Raises:
        CapabilityError: The filter's scores have a strange shape or are not numbers.
        MemoryMismatchError: The filter rules out more slots in one layer or head than in another.
    """
    memory = sight.memory
    scores = _numbers(filter_.score(sight), spec)
    if scores.dim() == 2:
        scores = scores[None, :, None]
    fits = scores.dim() == 4 and scores.shape[1] == memory.rows and scores.shape[3] == memory.slots
    if not fits or scores.shape[0] not in {1, memory.layers}:
        raise CapabilityError(
            f"filter {spec.name!r} gave scores of shape {tuple(scores.shape)}; expected rows x slots "
            f"{(memory.rows, memory.slots)}, or layers x rows x heads x slots"
        )
    valid = memory.valid[None, :, None]
    if bool((scores.isnan() & valid).any()):
        raise CapabilityError(f"filter {spec.name!r} gave a score that is not a number")
    scores = scores.masked_fill(~valid, -torch.inf)
    if spec.protect != Protect() or (spec.budget is not None and spec.budget.unit is Unit.AGENT):
        # Who is protected, and whose slot it is, may differ from head to head.
        labels = memory.kinds if not memory.uniform else memory.kinds[None, :, None]
        sets, heads = max(len(scores), len(labels)), max(scores.shape[2], labels.shape[2])
        scores = scores.expand(sets, -1, heads, -1)
    safe = protected(memory, spec.protect)
    allowed = (scores > -torch.inf) | safe
    if spec.budget is None or not memory.slots:
        sizes = allowed.sum(dim=-1)
        if bool((sizes != sizes[:1, :, :1]).any()):
            raise MemoryMismatchError(
                f"{spec} rules out more slots in one layer or head than in another; after a filter that chooses for "
                "each of them, only filters with a budget can follow: choose by --grain token, or protect thoughts"
            )
        return allowed & valid
    ranked, first = scores, safe
    if spec.budget.unit is Unit.AGENT:
        order = _order(scores, safe)  # [P, B, Q, S]
        first = _within_agents(order, safe, int(spec.budget.amount), memory)
        wanted = first.sum(dim=-1).amax(dim=(0, 2))
        ranked = -_places(order).double()
    else:
        wanted = _wanted(spec.budget, memory)
    fewest = safe.sum(dim=-1).amax(dim=(0, 2))  # [B]
    most = allowed.sum(dim=-1).amin(dim=(0, 2))
    # At least one slot: an empty memory is what a control arm is for. What is protected may exceed the budget.
    sizes = torch.maximum(torch.minimum(wanted.clamp_min(1), most), fewest)
    return _best(ranked, first, sizes)


def _numbers(scores: object, spec: KeepSpec) -> Tensor:
    """Return scores as floating point; whole numbers, such as positions, and truths are scores as well."""
    if not isinstance(scores, Tensor):
        raise CapabilityError(
            f"filter {spec.name!r} gave {shown(scores)} for scores; expected a tensor, rows x slots, or layers x rows "
            "x heads x slots"
        )
    return scores if scores.is_floating_point() else scores.double()


def protected(memory: LatentMemory, protect: Protect) -> Tensor:
    """Return ``[P, B, Q, S]`` bool: what is kept whatever its score."""
    valid, kinds = memory.valid, memory.kinds
    number = valid.long().cumsum(dim=1) - 1  # [B, S]; of a slot in its row
    safe = number < protect.sinks
    if protect.newest:
        safe |= number >= memory.real_slots[:, None] - protect.newest
    safe = (safe & valid)[None, :, None]
    if protect.thoughts:
        thoughts = kinds == int(SlotKind.THOUGHT)
        safe = safe | ((thoughts[None, :, None] if memory.uniform else thoughts) & valid[None, :, None])
    return safe


def _ranked(scores: Tensor, first: Tensor) -> Tensor:
    """Return scores among which those that are `first` are the highest, and equal."""
    capped = scores.clamp_max(torch.finfo(scores.dtype).max)
    return capped.masked_fill(first, torch.inf)


def _order(scores: Tensor, first: Tensor) -> Tensor:
    """Return slots from best to worst: those that are `first`, then by score, then the older of two equals."""
    # Stable, so that equals keep their order whatever stands around them: the choice is the same in any batch.
    return _ranked(scores, first).argsort(dim=-1, descending=True, stable=True)


def _best(scores: Tensor, first: Tensor, sizes: Tensor) -> Tensor:
    """Return ``[P, B, Q, S]`` bool: what comes first in that order, `sizes` of each row.

    They are found without putting all in order, which takes five times as long.
    """
    ranked, number = _ranked(scores, first), sizes[None, :, None, None]
    least = torch.cat(  # what the last one that is chosen has
        [
            ranked[:, row : row + 1].topk(max(1, size), dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
            for row, size in enumerate(sizes.tolist())
        ],
        dim=1,
    )
    chosen = ranked >= least
    if bool((chosen.sum(dim=-1, keepdim=True) != number).any()):  # several have that
        above, equal = ranked > least, ranked == least
        spare = number - above.sum(dim=-1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(dim=-1) <= spare))
    return chosen


def _places(order: Tensor) -> Tensor:
    """Return the place of each slot in an order."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _wanted(budget: Budget, memory: LatentMemory) -> Tensor:
    """Return how many slots a budget leaves each row, ``[B]``, rounded down in the arithmetic of the published code."""
    if budget.unit is Unit.SLOTS:
        return torch.full_like(memory.made, int(budget.amount))
    slots = memory.real_slots if budget.unit is Unit.CACHE else memory.made
    return torch.tensor([int(number * budget.amount) for number in slots.tolist()], device=memory.device)


def _within_agents(order: Tensor, safe: Tensor, amount: int, memory: LatentMemory) -> Tensor:
    """Return ``[P, B, Q, S]`` bool: the first so many slots of each agent, and what is protected."""
    agents = memory.agents[None, :, None] if memory.uniform else memory.agents
    agents = torch.where(memory.valid[None, :, None], agents, -1).expand_as(order).gather(-1, order)  # best first
    inside = torch.zeros_like(order, dtype=torch.bool)
    for agent in range(len(memory.agent_names)):
        own = agents == agent
        inside |= own & (own.cumsum(dim=-1) <= amount)
    return torch.zeros_like(inside).scatter_(-1, order, inside) | safe
