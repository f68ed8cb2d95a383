"""One batch of programs of one shape, run from the first Read to the last Write.

The rows of a batch share tensors and nothing else: every Read is padded on the left, masks and positions are per
row, random numbers are hashes of the row's own key, and a row that ends leaves the batch.

Shape letters: B rows, T tokens of a Read, E hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from latentmas.alignment import Alignment, rescale
from latentmas.backends.hf.attention import MemoryCache, additive, visibility
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.sampling import choose, normal, stream_key
from latentmas.errors import NumericalError, SampleError
from latentmas.memory import LatentMemory
from latentmas.program import Handover, Join, Program, Read, SlotKind, Step, Think, ThoughtSource, Write
from latentmas.protocols import StepAccount
from latentmas.samples import FinishReason


@dataclass(slots=True)
class Row:
    """One program in the batch, and what came of it so far.

    Attributes:
        program: None only before the first step of an interactive session.
        error: Set when the row cannot go on; it has left the batch then.
    """

    program: Program | None
    seed: int
    accounts: list[StepAccount] = field(default_factory=list)
    thoughts: int = 0
    writes: int = 0
    written: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: SampleError | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.program.steps if self.program else ()


def shape(program: Program) -> tuple[Step, ...]:
    """Return what programs must have in common to share a batch: everything but their tokens."""
    return tuple(replace(step, tokens=(0,), text="") if isinstance(step, Read) else step for step in program)


class Rollout:
    """Runs the verbs on a batch. `memory` and `hidden` are what an interactive session keeps between them.

    Attributes:
        memory: Of the rows still in the batch.
        hidden: ``[B, E]`` the last hidden state of each of them; None before the first Read.
        rows: The rows still in the batch.
    """

    def __init__(
        self, model: LoadedModel, alignment: Alignment, rows: Sequence[Row], memory: LatentMemory | None = None
    ) -> None:
        self.model = model
        self.alignment = alignment
        self.rows = list(rows)
        self.memory = memory or LatentMemory(len(self.rows), model.layers, model.device)
        self.hidden: Tensor | None = None
        self._thought_norm: float | None = None

    @torch.inference_mode()
    def run(self) -> None:
        """Run every step; the rows hold what came of it."""
        steps = self.rows[0].steps
        self.memory.reserve(_slots_before_writing([row.steps for row in self.rows]))
        for number in range(len(steps)):
            if not self.rows:
                return
            self.step(number, last=number + 1 == len(steps))

    def step(self, number: int, last: bool) -> None:
        """Run step `number` of every row, and account for it."""
        began, rows = time.perf_counter(), list(self.rows)
        match rows[0].steps[number]:
            case Read() as step:
                reads = [row.steps[number] for row in rows]
                passes = self.read(step.agent, [read.tokens for read in reads if isinstance(read, Read)])
            case Think() as step:
                passes = self.think(step)
            case Write() as step:
                passes = self.write(step, last)
            case Handover() as step:
                passes = self.hand_over(step)
            case Join():
                raise AssertionError("a Join is refused when it is submitted")
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self._account(step, rows, passes, time.perf_counter() - began)

    def read(self, agent: str, tokens: Sequence[tuple[int, ...]]) -> int:
        """Prefill; the LM head is not computed."""
        width = max(len(row) for row in tokens)
        ids = torch.zeros(len(tokens), width, dtype=torch.long)
        valid = torch.zeros(len(tokens), width, dtype=torch.bool)
        for row, own in enumerate(tokens):
            ids[row, width - len(own) :] = torch.tensor(own)
            valid[row, width - len(own) :] = True
        device = self.model.device
        embeddings = self.model.causal.get_input_embeddings()(ids.to(device))
        self.hidden = self._forward(embeddings, valid.to(device), agent, SlotKind.PROMPT)
        return 1

    def think(self, step: Think) -> int:
        """Feed the aligned hidden state back, `steps` times. A row whose thought is not finite leaves."""
        assert self.hidden is not None
        everyone = torch.ones(len(self.rows), 1, dtype=torch.bool, device=self.model.device)
        keys = self._keys("noise", [0] * len(self.rows)) if step.source is ThoughtSource.NOISE else None
        first = self.rows[0].thoughts
        finite = torch.ones(len(self.rows), dtype=torch.bool, device=self.model.device)
        for number in range(step.steps):
            if keys is None:
                thought = self.alignment(self.hidden)  # [B, E]
            else:
                noise = normal(keys, first + number, self.hidden.shape[1])
                thought = rescale(noise, self.alignment.norm).to(self.hidden.device, self.hidden.dtype)
            finite &= thought.isfinite().all(dim=1).to(finite.device)
            self.hidden = self._forward(thought[:, None], everyone, step.agent, SlotKind.THOUGHT)
        for row in self.rows:
            row.thoughts += step.steps
        self._drop_broken(finite.tolist(), f"a thought of agent {step.agent!r} is not finite")
        return step.steps

    def hand_over(self, step: Handover) -> int:
        """Drop the slots that are not passed on. Keeping everything moves nothing."""
        memory = self.memory
        if step.keep.name == "thoughts":
            self.memory = memory.keep(memory.kinds == int(SlotKind.THOUGHT))
        elif step.keep.name == "last_agent":
            self.memory = memory.keep(memory.agents == memory.agent_number(step.agent))
        return 0

    def write(self, step: Write, last: bool) -> int:
        """Decode until every row has ended. Rows leave as they end when nothing comes after this step."""
        assert self.hidden is not None
        for row in self.rows:
            row.written, row.finish_reason = [], None
        numbers = [row.writes for row in self.rows]
        keys = self._keys("write", numbers)
        for row in self.rows:
            row.writes += 1
        passes = 0
        for position in range(step.max_new_tokens):
            logits = self.model.logits(self.hidden)
            chosen = choose(logits, step.sampling, keys, position).to(self.model.device)
            best = logits.amax(dim=-1)
            # One transfer per token: the ids, and whether they came from finite logits.
            ids, finite = torch.stack([chosen, best.isfinite().to(chosen.device).long()]).tolist()
            for row, token, is_finite in zip(self.rows, ids, finite, strict=True):
                if row.finish_reason is None and row.error is None:
                    _take(row, token, bool(is_finite), self.model.stop_tokens, step)
            ended = [row.error is not None or row.finish_reason is not None for row in self.rows]
            goes_on = [row.error is None and row.finish_reason is not FinishReason.STOP for row in self.rows]
            if last and all(ended):
                break
            if last and any(ended):
                staying = [index for index, done in enumerate(ended) if not done]
                self._select(staying)
                index = torch.tensor(staying, device=chosen.device)
                keys, chosen, goes_on = keys[index], chosen[index], [True] * len(staying)
            self._feed(chosen, goes_on, step.agent)
            passes += 1
            if all(row.error is not None or row.finish_reason is not None for row in self.rows):
                break
        if not last:
            self._select([index for index, row in enumerate(self.rows) if row.error is None])
        return passes

    def _feed(self, tokens: Tensor, goes_on: list[bool], agent: str) -> None:
        """Put written tokens into memory; rows that have ended get a pad and keep their hidden state."""
        before = self.hidden
        real = torch.tensor(goes_on, device=self.model.device)[:, None]
        embeddings = self.model.causal.get_input_embeddings()(tokens)[:, None]
        after = self._forward(embeddings, real, agent, SlotKind.TEXT)
        assert before is not None
        self.hidden = torch.where(real.to(after.device), after, before)

    def _forward(self, embeddings: Tensor, valid: Tensor, agent: str, kind: SlotKind) -> Tensor:
        """Run the decoder over new slots; return the hidden state of the last one, ``[B, E]``.

        Args:
            embeddings: ``[B, T, E]``.
            valid: ``[B, T]`` bool; padding on the left.
        """
        model, new = self.model, valid.shape[1]
        positions = self.memory.extend(valid, agent, kind)
        masks: dict[str | None, Tensor] = {}
        for name, window in model.windows.items():
            mask = visibility(self.memory, new, window)
            masks[name] = additive(mask, embeddings.dtype) if model.attention == "eager" else mask
        output = model.decoder(
            inputs_embeds=embeddings,
            attention_mask=masks.get(None, masks),
            position_ids=positions,
            past_key_values=MemoryCache(self.memory),
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def _keys(self, domain: str, numbers: Sequence[int]) -> Tensor:
        keys = [stream_key(row.seed, domain, number) for row, number in zip(self.rows, numbers, strict=True)]
        return torch.tensor(keys, dtype=torch.long, device=self.model.device)

    def _drop_broken(self, finite: Sequence[bool], message: str) -> None:
        for row, is_finite in zip(self.rows, finite, strict=True):
            if not is_finite:
                row.error = NumericalError(f"{message}; try another dtype (--dtype float32) or --alignment")
        if not all(finite):
            self._select([index for index, row in enumerate(self.rows) if row.error is None])

    def _select(self, staying: Sequence[int]) -> None:
        if len(staying) == len(self.rows):
            return
        self.memory = self.memory.select_rows(staying)
        if self.hidden is not None:
            self.hidden = self.hidden[torch.tensor(staying, dtype=torch.long, device=self.hidden.device)]
        self.rows = [self.rows[index] for index in staying]

    def _account(self, step: Step, rows: Sequence[Row], passes: int, seconds: float) -> None:
        assert not isinstance(step, Join)
        remaining = dict(zip(map(id, self.rows), self.memory.real_slots.tolist(), strict=True))
        for row in rows:
            before = row.accounts[-1].slots if row.accounts else 0
            prompt = len(step_of.tokens) if isinstance(step_of := row.steps[len(row.accounts)], Read) else 0
            written = tuple(row.written) if isinstance(step, Write) else ()
            # The last token of a text that was cut is read back only where a step follows.
            unread = row.finish_reason is FinishReason.LENGTH and len(row.accounts) + 1 == len(row.steps)
            fed = len(written) - unread
            row.accounts.append(
                StepAccount(
                    verb=type(step).__name__,
                    agent=step.agent,
                    prompt_tokens=prompt,
                    thoughts=step.steps if isinstance(step, Think) else 0,
                    written=written,
                    # A row that left the batch took what it wrote along; count what it had.
                    slots=remaining.get(id(row), before + fed),
                    memory_bytes=remaining.get(id(row), before + fed) * self.memory.slot_bytes,
                    forward_passes=fed if isinstance(step, Write) else passes,
                    seconds=seconds / len(rows),
                )
            )


def _take(row: Row, token: int, is_finite: bool, stop_tokens: frozenset[int], step: Write) -> None:
    """Add a token to what a row wrote, or end the row."""
    if not is_finite:
        row.error = NumericalError(f"a logit of agent {step.agent!r} is not finite; try --dtype float32")
    elif token in stop_tokens:
        row.finish_reason = FinishReason.STOP
    else:
        row.written.append(token)
        if len(row.written) == step.max_new_tokens:
            row.finish_reason = FinishReason.LENGTH


def _slots_before_writing(rows: Sequence[tuple[Step, ...]]) -> int:
    """Return the slots a batch needs, pads included, up to its last Write, whose length nobody knows."""
    total = 0
    for steps in zip(*rows, strict=True):
        if isinstance(steps[0], Read):
            total += max(len(step.tokens) for step in steps if isinstance(step, Read))
        elif isinstance(steps[0], Think):
            total += steps[0].steps
    return total
