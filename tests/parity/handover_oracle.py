"""Hand-overs and joins derived a second time, in plain float64, from what they mean and not from how they are done.

There is no cache to cut, gather or turn. A `Tape` is one row in which no slot is ever removed: it remembers, for every
query, layer and key head, which slots that query may see and how many positions lie between the two. The whole tape
runs again from its input embeddings at every step, and rotary positions enter as the distance of query and key alone.

    dropping a slot       later queries do not see it, in that layer and head
    moving a slot         later queries see it at another distance; what it says was computed where it used to be
    joining               branches lie one behind the other and see nothing of each other
    recalling             what branches before it left lies in front of a branch; nothing of it is computed again

Shape letters: S slots so far, L layers, H query heads, G key/value heads, E hidden size, D head width, N longest tape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentmas.program import Handover, Join, Positions, Program, Read, Recall, Step, Think, Write
from parity.oracle import Oracle


@dataclass
class Tape:
    """One row, everything that was ever in it.

    Attributes:
        sees: ``[L, G, N, N]`` bool, a row per query.
        apart: ``[L, G, N, N]`` position of the query minus that of the key, as this query finds it.
        alive: ``[L, G, N]`` bool: which slots the next query sees.
        places: ``[L, G, N]`` where keys are now.
        spans: Who took up how many positions, in order; None where heads differ in that.
        laid: Slots before this one were laid down where they are; later ones follow them in their own order.
        turn: The slot at which the turn of the present agent begins.
        hidden: ``[E]`` the last hidden state before the last Write began; at the end where nobody writes.
        margin: Smallest distance of the two largest logits over all tokens chosen.
    """

    sees: Tensor
    apart: Tensor
    alive: Tensor
    places: Tensor
    embeddings: list[Tensor] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    spans: list[tuple[str | None, int]] = field(default_factory=list)
    next_position: int = 0
    turn: int = 0
    laid: int = 0
    hidden: Tensor | None = None
    written: list[int] = field(default_factory=list)
    margin: float = math.inf

    @property
    def slots(self) -> int:
        return len(self.embeddings)

    @classmethod
    def empty(cls, layers: int, groups: int, longest: int) -> Tape:
        shape = (layers, groups, longest)
        return cls(
            sees=torch.zeros(*shape, longest, dtype=torch.bool),
            apart=torch.zeros(*shape, longest, dtype=torch.long),
            alive=torch.zeros(shape, dtype=torch.bool),
            places=torch.zeros(shape, dtype=torch.long),
        )

    def fork(self) -> Tape:
        """Return a tape that can go on without this one."""
        tensors = (self.sees.clone(), self.apart.clone(), self.alive.clone(), self.places.clone())
        return Tape(
            *tensors, [*self.embeddings], [*self.agents], [*self.spans], self.next_position, self.turn, self.laid
        )

    def append(self, embedding: Tensor, agent: str) -> None:
        """Add a slot behind all others; it sees itself and what is alive."""
        slot = self.slots
        self.embeddings.append(embedding)
        self.agents.append(agent)
        self.alive[..., slot] = True
        self.places[..., slot] = self.next_position
        self.sees[:, :, slot] = self.alive
        self.apart[:, :, slot] = self.next_position - self.places
        self.next_position += 1
        if self.spans and self.spans[-1][0] == agent:
            self.spans[-1] = (agent, self.spans[-1][1] + 1)
        else:
            self.spans.append((agent, 1))

    def order(self, layer: int, group: int) -> list[int]:
        """Return the slots that are alive in one layer and head, as they lie in memory."""
        alive = self.alive[layer, group].nonzero().flatten().tolist()
        laid, behind = self.laid, self.places.numel()
        return sorted(alive, key=lambda slot: int(self.places[layer, group, slot]) if slot < laid else behind + slot)

    def _heads(self) -> list[tuple[int, int]]:
        return [(layer, group) for layer in range(self.alive.shape[0]) for group in range(self.alive.shape[1])]

    def cut(self, kept: Tensor, positions: Positions) -> None:
        """Let nobody see what is not kept, and decide where slots and the next token are from now on.

        Args:
            kept: ``[L, G, N]`` bool; as many slots in every layer and head.
        """
        assert not bool((kept & ~self.alive).any()), "what was dropped before cannot be kept"
        counts = kept.sum(-1).unique().tolist()
        assert len(counts) == 1, "layers and heads keep different numbers of slots"
        self.alive = kept.clone()
        self.turn = self.slots
        if positions is Positions.TRUE:
            return
        spans: list[tuple[str | None, int]] = [(None, counts[0])]
        if positions is Positions.REROTATE:
            places = self.places.clone()
            ends = [sum(length for _, length in self.spans[: number + 1]) for number in range(len(self.spans))]
            below = [(kept & (self.places < end)).sum(-1).unique().tolist() for end in ends]
            if all(len(counts) == 1 for counts in below):  # heads have as many of each turn
                amounts = [after[0] - before[0] for before, after in zip([[0], *below], below, strict=False)]
                spans = [(name, amount) for (name, _), amount in zip(self.spans, amounts, strict=True)]
                while spans and not spans[-1][1]:
                    spans.pop()  # whose turn came last and left nothing has none
            for layer, group in self._heads():
                for number, slot in enumerate(self.order(layer, group)):
                    places[layer, group, slot] = number
            self.places = places
        self.spans, self.next_position = spans, counts[0]

    def left(self) -> Left:
        """Return what whoever goes on from here finds."""
        return Left(self.alive.clone(), self.places.clone(), list(self.spans))

    def go_on_from(self, memories: Sequence[Left]) -> None:
        """Lay down memories one behind the other, of each agent the first one that holds any of its slots."""
        longest: dict[tuple[object, int], int] = {}
        named = []
        for number, memory in enumerate(memories):
            names: list[tuple[object, int]] = []
            for agent, length in memory.spans:
                whose = agent if agent is not None else number
                names.append((whose, [name for name, _ in names].count(whose)))
                longest[names[-1]] = max(length, longest.get(names[-1], 0))
            named.append(names)
        order = list(longest)
        self.alive = torch.zeros_like(self.alive)
        places = self.places.clone()
        for memory, names in zip(memories, named, strict=True):
            known = {name for slot, name in enumerate(self.agents) if bool(self.alive[..., slot].any())}
            old, ends = 0, []
            for (_, length), name in zip(memory.spans, names, strict=True):
                old += length
                new = sum(longest[other] for other in order[: order.index(name)])
                ends.append((old, new - (old - length)))
            for slot, name in enumerate(self.agents):
                if name in known:
                    continue
                self.alive[..., slot] |= memory.alive[..., slot]
                for layer, group in memory.alive[..., slot].nonzero().tolist():
                    at = int(memory.places[layer, group, slot])
                    places[layer, group, slot] = at + next(by for end, by in ends if at < end)
        self.places = places
        self.spans = [(name if isinstance(name, str) else None, longest[name, count]) for name, count in order]
        self.next_position = sum(longest.values())
        self.turn = self.laid = self.slots


@dataclass(frozen=True)
class Left:
    """What is in a memory, in the terms of its `Tape`."""

    alive: Tensor
    places: Tensor
    spans: list[tuple[str | None, int]]


@dataclass(frozen=True)
class View:
    """One run over a whole tape.

    Attributes:
        hidden: ``[S, E]`` after the final norm.
        weights: ``[L, H, S, S]`` softmax weights, a row per query.
        keys: ``[L, S, G, D/2]`` complex, not turned: pair i is a number in the plane.
    """

    hidden: Tensor
    weights: Tensor
    keys: Tensor


Decide = Callable[[Tape, Handover, tuple[int, ...]], Tensor]
"""Returns what a hand-over keeps, ``[L, G, N]`` bool; given the prompt of the next Read, empty where none comes."""


class HandoverOracle(Oracle):
    """Runs any program on one row."""

    @property
    def rates(self) -> Tensor:
        """``[D/2]`` radians by which each pair turns per position."""
        return self.theta ** (-torch.arange(self.width // 2, dtype=torch.float64) * 2 / self.width)

    def replay(self, program: Program, decide: Decide, end: Collection[int] = ()) -> Tape:
        """Run a program; `decide` is asked at each hand-over that does not simply pass everything."""
        count = program.count()
        longest = count.prompt_tokens + count.thoughts + count.max_written_tokens
        tape = Tape.empty(self.layers, self.groups, longest)
        self._steps(tape, program.steps, decide, end)
        if tape.hidden is None:
            tape.hidden = self.look(tape).hidden[-1]
        return tape

    def look(self, tape: Tape) -> View:
        """Run every slot of a tape from its input embedding, through all layers."""
        slots = tape.slots
        x = torch.stack(tape.embeddings)  # [S, E]
        causal = torch.ones(slots, slots, dtype=torch.bool).tril()
        weights, keys = [], []
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            sees, apart = tape.sees[layer, :, :slots, :slots], tape.apart[layer, :, :slots, :slots]
            sees = sees & causal
            if self.window is not None:
                sees = sees & (apart < self.window)
            made, given, key = self._attend(f"{name}.self_attn", self._norm(x, f"{name}.input_layernorm"), sees, apart)
            weights.append(given)
            keys.append(key)
            x = x + made
            x = x + self._feed_forward(f"{name}.mlp", self._norm(x, f"{name}.post_attention_layernorm"))
        return View(self._norm(x, "model.norm"), torch.stack(weights), torch.stack(keys))

    def cached_keys(self, tape: Tape, layer: int) -> Tensor:
        """Return the keys of a layer turned to where they are now, ``[S, G, D]``: what a cache would hold."""
        angle = tape.places[layer, :, : tape.slots].T[..., None] * self.rates  # [S, G, D/2]
        turned = self.look(tape).keys[layer] * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    def attention(self, tape: Tape, first: int) -> tuple[Tensor, Tensor]:
        """Return what the queries from slot `first` on give to each slot, ``[L, G, S]`` each.

        The first is the sum over those queries, a mean over the query heads of a group; the second the largest weight.
        """
        given = self.look(tape).weights[:, :, first:]
        given = given.unflatten(1, (self.groups, self.heads // self.groups))  # [L, G, H/G, queries, S]
        return given.sum(3).mean(2), given.amax((2, 3))

    def reading(self, tape: Tape, prompt: Sequence[int]) -> Tape:
        """Return a copy of the tape on which this prompt was read as well."""
        tried = tape.fork()
        short = tape.sees.shape[-1] - tape.slots - len(prompt)
        assert short >= 0, "the tape is as long as the program needs, and the prompt is part of it"
        for token in prompt:
            tried.append(self.embedding[token], "")
        return tried

    def _steps(self, tape: Tape, steps: Sequence[Step], decide: Decide, end: Collection[int]) -> None:
        for number, step in enumerate(steps):
            match step:
                case Read():
                    for token in step.tokens:
                        tape.append(self.embedding[token], step.agent)
                case Think():
                    for _ in range(step.steps):
                        hidden = self.look(tape).hidden[-1]
                        length = max(float(hidden.pow(2).sum().sqrt()), 1e-6)
                        tape.append(hidden * self.mean_norm / length, step.agent)
                case Handover():
                    if not step.passes_everything:
                        later = [other for other in steps[number:] if isinstance(other, Read)]
                        tape.cut(decide(tape, step, later[0].tokens if later else ()), step.positions)
                    tape.turn = tape.slots
                case Write():
                    self._write(tape, step, end)
                case Join():
                    self._join(tape, step, decide, end)
                case Recall():
                    pass  # done when the branch began

    def _write(self, tape: Tape, step: Write, end: Collection[int]) -> None:
        tape.written = []
        for place in range(step.max_new_tokens):
            hidden = self.look(tape).hidden[-1]
            if place == 0:
                tape.hidden = hidden
            best = (self.head @ hidden).topk(2)
            tape.margin = min(tape.margin, float(best.values[0] - best.values[1]))
            token = int(best.indices[0])
            if token in end:
                break
            tape.written.append(token)
            tape.append(self.embedding[token], step.agent)

    def _join(self, tape: Tape, step: Join, decide: Decide, end: Collection[int]) -> None:
        left: list[Left] = []
        for branch in step.branches:
            tape.go_on_from([left[number] for number in branch.recalled])
            self._steps(tape, branch.steps, decide, end)
            left.append(tape.left())
        tape.go_on_from([left[number] for number in step.joined_branches])

    def _attend(self, name: str, x: Tensor, sees: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what attention adds ``[S, E]``, its weights ``[H, S, S]`` and the keys ``[S, G, D/2]``.

        Args:
            sees: ``[G, S, S]``.
            apart: ``[G, S, S]``.
        """
        slots = x.shape[0]
        query = self._linear(x, f"{name}.q_proj").view(slots, self.heads, self.width)
        key = self._linear(x, f"{name}.k_proj").view(slots, self.groups, self.width)
        value = self._linear(x, f"{name}.v_proj").view(slots, self.groups, self.width)
        if self.kind == "qwen3":
            query, key = self._norm(query, f"{name}.q_norm"), self._norm(key, f"{name}.k_norm")
        query, key = _plane(query), _plane(key)
        farthest = int(apart.abs().max())
        angle = torch.arange(-farthest, farthest + 1, dtype=torch.float64)[:, None] * self.rates
        turns = torch.polar(torch.ones_like(angle), angle)
        share = self.heads // self.groups
        mixed, given = [], []
        for group in range(self.groups):
            # Re(q e^(i p w) conj(k e^(i r w))) = Re(q conj(k) e^(i (p - r) w)): only the distance matters.
            seen = turns[apart[group] + farthest] * key[:, group].conj()  # [S, S, D/2]
            own = query[:, group * share : (group + 1) * share]  # [S, H/G, D/2]
            scores = (own @ seen.transpose(1, 2)).real.transpose(0, 1) / math.sqrt(self.width)  # [H/G, S, S]
            weights = scores.masked_fill(~sees[group], -math.inf).softmax(-1)
            given.append(weights)
            mixed.append(weights @ value[:, group])  # [H/G, S, D]
        heads = torch.cat(mixed).transpose(0, 1).reshape(slots, -1)
        return self._linear(heads, f"{name}.o_proj"), torch.cat(given), key


def published(
    oracle: HandoverOracle,
    *,
    strategy: str,
    fraction: float,
    least: int,
    random: Callable[[int, int], Tensor],
    kept: list[list[int]],
) -> Decide:
    """Return the rule of the kNN follow-up, which notes in `kept` the numbers of the slots of each hand-over.

    Args:
        least: That many of the newest slots stay, and count.
        random: Number of a hand-over and a length to that many random numbers, in place of its global generator.
    """

    def decide(tape: Tape, step: Handover, prompt: tuple[int, ...]) -> Tensor:
        slots = tape.order(0, 0)
        amount = max(int(len(slots) * fraction), least)
        if strategy == "random":
            scores = random(len(kept), len(slots))
        else:
            asked = oracle.embedding[list(prompt)].mean(0).reshape(-1, oracle.width).mean(0)  # [D]
            found = oracle.cached_keys(tape, oracle.layers // 2)[slots].mean(1)  # [slots, D]
            scores = found @ asked / (found.pow(2).sum(1).sqrt() * asked.pow(2).sum().sqrt())
        if strategy == "bottom":
            scores = -scores
        numbers = list(range(len(slots)))
        old, new = numbers[:-least], numbers[-least:]
        best = sorted(old, key=lambda number: -float(scores[number]))[: amount - least]
        kept.append(sorted(best) + new)
        mask = torch.zeros_like(tape.alive)
        mask[..., [slots[number] for number in kept[-1]]] = True
        return mask

    return decide


def _plane(x: Tensor) -> Tensor:
    """Return ``[..., D]`` as ``[..., D/2]`` numbers in the plane, of the first and the second half."""
    half = x.shape[-1] // 2
    return torch.complex(x[..., :half], x[..., half:])
