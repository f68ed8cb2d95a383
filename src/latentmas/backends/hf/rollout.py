"""One batch of programs of one shape, run from the first Read to the last Write.

The rows of a batch share tensors and nothing else: every Read is padded on the left, masks and positions are per
row, random numbers are hashes of the row's own key, and a row that ends leaves the batch.

Shape letters: B rows, T tokens of a Read, E hidden size, V vocabulary, L layers, H key/value heads, S slots.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from latentmas.alignment import Alignment, rescale
from latentmas.backends.hf import handover
from latentmas.backends.hf.attention import MemoryCache, additive, visibility
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.longrope import row_lengths
from latentmas.backends.hf.sampling import choose, normal, penalized, stream_key
from latentmas.backends.hf.watch import Watch, watching
from latentmas.collapse import measure
from latentmas.errors import NumericalError, SampleError
from latentmas.memory import LatentMemory
from latentmas.program import Handover, Join, Program, Read, Recall, SlotKind, Step, Think, ThoughtSource, Write
from latentmas.protocols import (
    AgentVectors,
    ArtifactSink,
    Capture,
    HandoverAccount,
    Phase,
    Progress,
    Report,
    StepAccount,
    ThoughtAccount,
)
from latentmas.samples import FinishReason


@dataclass(slots=True)
class Row:
    """One program in the batch, and what came of it so far.

    Attributes:
        program: None only before the first step of an interactive session.
        key: Of its job; what an artifact sink knows the row by.
        error: Set when the row cannot go on; it has left the batch then.
        vectors: Of agents that have taken their turn, where a sink wants them.
        reach: Positions it will have used when it begins its last text; longrope takes its factors by it.
    """

    program: Program | None
    seed: int
    key: str = ""
    accounts: list[StepAccount] = field(default_factory=list)
    thoughts: int = 0
    handovers: int = 0
    writes: int = 0
    written: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: SampleError | None = None
    vectors: list[AgentVectors] = field(default_factory=list)
    reach: int = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.program.steps if self.program else ()

    def agent(self, number: int) -> str:
        """Return who does step `number`; nobody in particular does a Join or a Recall."""
        step = self.steps[number]
        return "" if isinstance(step, Join | Recall) else step.agent


def shape(program: Program) -> tuple[object, ...]:
    """Return what programs must have in common to share a batch: everything but their tokens and who does what."""
    common: list[object] = []
    for step in program:
        match step:
            case Read():
                common.append(Read)
            case Join():
                common.append((Join, step.joined, *map(shape, step.branches)))
            case Recall():
                common.append(step)
            case _:
                common.append(replace(step, agent=""))
    return tuple(common)


class Rollout:
    """Runs the verbs on a batch. `memory` and `hidden` are what an interactive session keeps between them.

    Args:
        sink: Takes similarities while the batch runs, and vectors of each row in `Row.vectors`.
        releases: A hand-over gives up the memory it cuts layer by layer, so that the two never exist as a whole.
        report: Is told of every step, thought and token.
        batch: Programs in the batch, where this one runs branches of them; 0 is its own rows.
        watches_end: Somebody who goes on from where this ends wants to know what its last agent attended to.

    Attributes:
        memory: Of the rows still in the batch.
        hidden: ``[B, E]`` the last hidden state of each of them; None before the first Read.
        thought: ``[B, E]`` the last thought of each, where the last step was a Think; None otherwise.
        rows: The rows still in the batch.
        attended: ``[L, B, H, S]`` what the agent whose turn it is attended to, where its hand-over wants to know.
        fed: Everything that was read, ``[B, T, E]`` each, where longrope may want it once more; None where it cannot.
    """

    def __init__(
        self,
        model: LoadedModel,
        alignment: Alignment,
        rows: Sequence[Row],
        memory: LatentMemory | None = None,
        *,
        sink: ArtifactSink | None = None,
        releases: bool = False,
        report: Report | None = None,
        batch: int = 0,
        watches_end: bool = False,
    ) -> None:
        self.model = model
        self.alignment = alignment
        self.rows = list(rows)
        self.memory = memory or LatentMemory(len(self.rows), model.layers, model.device)
        self.hidden: Tensor | None = None
        self.attended: Tensor | None = None
        self.sink = sink
        self.releases = releases
        self.report = report
        self.batch = batch or len(self.rows)
        self._doing: Progress | None = None
        self.watches_end = watches_end
        self.fed: list[Tensor] | None = [] if model.switch is not None and memory is None else None
        self._keeps_vectors = sink is not None and Capture.EMBEDDINGS in sink.wants
        self._handed: Sequence[HandoverAccount | None] = []
        self._branches: dict[int, tuple[tuple[StepAccount, ...], ...]] = {}
        self._thinking: Sequence[ThoughtAccount | None] = []
        self.thought: Tensor | None = None

    @torch.inference_mode()
    def run(self) -> None:
        """Run every step; the rows hold what came of it."""
        steps = self.rows[0].steps
        for number in range(len(steps)):
            if not self.rows:
                return
            if number == 0 or _makes_memory_anew(steps[number - 1]):
                self.memory.reserve(self.slots_ahead(number))
            self.step(number, last=number + 1 == len(steps))

    def step(self, number: int, last: bool) -> None:
        """Run step `number` of every row, and account for it."""
        began, rows = time.perf_counter(), list(self.rows)
        if self.model.switch is not None:
            for row, position in zip(rows, self.memory.next_position.tolist(), strict=True):
                # Never less than before: what is in memory was rotated for it, and a text may end early.
                row.reach = max(row.reach, position + positions_ahead(row.steps[number:]))
        self._handed, self._thinking, self._branches = [None] * len(rows), [None] * len(rows), {}
        if not isinstance(rows[0].steps[number], Think):
            self.thought = None
        self._begin(number)
        match rows[0].steps[number]:
            case Read():
                passes = self.read(number)
            case Think() as step:
                passes = self.think(number, step)
            case Write() as step:
                passes = self.write(number, step, last)
            case Handover() as step:
                with self.model.lock:  # filters are code of strangers, and one object serves all threads
                    self._handed, passes = handover.hand_over(self, number)
                if not step.passes_everything:
                    self.fed = None  # what is left could not be computed once more without what was dropped
            case Join():
                passes = self.join(number)
            case Recall():
                passes = 0  # what it goes on from is in memory already; see `join`
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self._account(number, rows, passes, time.perf_counter() - began)

    def _begin(self, number: int) -> None:
        """Report that step `number` begins. The branches of a Join report for themselves."""
        if self.report is None:
            return
        step, rows = self.rows[0].steps[number], len(self.rows)
        steps = 0
        match step:
            case Read():
                phase = Phase.READING
            case Think():
                phase, steps = Phase.THINKING, step.steps
            case Write():
                phase, steps = Phase.WRITING, step.max_new_tokens
            case Handover():
                phase = Phase.HANDING_OVER
            case Join() | Recall():
                phase = Phase.JOINING
        joins = isinstance(step, Join | Recall)
        agents = () if joins else tuple(dict.fromkeys(self.agents(number)))
        self._doing = Progress(phase=phase, agents=agents, steps=steps, rows=rows, going=rows, batch=self.batch)
        if not joins:
            self._tell()

    def _tell(self, *, step: int = 0, going: int | None = None, tokens: int = 0) -> None:
        """Report how far the step is; costs nothing where nobody wants to know."""
        if self.report is None or self._doing is None:
            return
        going = self._doing.rows if going is None else going
        self.report(replace(self._doing, step=step, going=going, tokens=tokens))

    def read(self, number: int) -> int:
        """Prefill; the LM head is not computed."""
        embeddings, valid = self.embed(number)
        self.hidden = self._take_turn(number, embeddings, valid, SlotKind.PROMPT)
        if self._keeps_vectors:
            prompts = handover.mean_embedding(embeddings, valid)
            for index, row in enumerate(self.rows):
                nothing = prompts.new_zeros(0, prompts.shape[1])
                row.vectors.append(self._vectors(row.agent(number), prompts[index], nothing, index))
        return 1

    def embed(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the input embeddings of the prompts of a step, ``[B, T, E]``, and which are real, ``[B, T]``."""
        reads = [row.steps[number] for row in self.rows]
        tokens = [read.tokens for read in reads if isinstance(read, Read)]
        width = max(len(row) for row in tokens)
        ids = torch.zeros(len(tokens), width, dtype=torch.long)
        valid = torch.zeros(len(tokens), width, dtype=torch.bool)
        for row, own in enumerate(tokens):
            ids[row, width - len(own) :] = torch.tensor(own)
            valid[row, width - len(own) :] = True
        device = self.model.device
        return self._embedded(ids.to(device)), valid.to(device)

    def _embedded(self, ids: Tensor) -> Tensor:
        """Return the input embeddings of tokens."""
        with self.model.lock:
            embeddings: Tensor = self.model.causal.get_input_embeddings()(ids)
        return embeddings

    def think(self, number: int, step: Think) -> int:
        """Feed the aligned hidden state back, `steps` times. A row whose thought is not finite leaves."""
        assert self.hidden is not None
        everyone = torch.ones(len(self.rows), 1, dtype=torch.bool, device=self.model.device)
        keys = self._keys("noise", [0] * len(self.rows)) if step.source is ThoughtSource.NOISE else None
        first = self.rows[0].thoughts
        made: list[Tensor] = []
        # A copy: the state a Read left is a view of those of its whole prompt.
        states = [self.hidden.clone()]
        for place in range(step.steps):
            self._tell(step=place + 1)
            if keys is None:
                thought = self.alignment(self.hidden)  # [B, E]
            else:
                noise = normal(keys, first + place, self.hidden.shape[1])
                thought = rescale(noise, self.alignment.norm).to(self.hidden.device, self.hidden.dtype)
            made.append(thought)
            self.hidden = self._take_turn(number, thought[:, None], everyone, SlotKind.THOUGHT)
            states.append(self.hidden)
        if not made:
            return 0
        for row in self.rows:
            row.thoughts += step.steps
        if self._keeps_vectors:
            thoughts = torch.stack(made, dim=1)  # [B, m, E]
            for index, row in enumerate(self.rows):
                before = row.vectors.pop()
                own = torch.cat([before.thoughts, thoughts[index].float().cpu()])
                row.vectors.append(self._vectors(before.agent, before.prompt, own, index))
        norms = torch.linalg.vector_norm(torch.stack(states[:-1]).float(), dim=2)  # [m, B]
        self._thinking = measure(made, norms.unbind(), self.thought)
        self.thought = made[-1]
        messages = [f"a thought of agent {row.agent(number)!r} is not finite" for row in self.rows]
        self._drop_broken([account is not None for account in self._thinking], messages)
        return step.steps

    def write(self, number: int, step: Write, last: bool) -> int:
        """Decode until every row has ended. Rows leave as they end when nothing comes after this step."""
        assert self.hidden is not None
        for row in self.rows:
            row.written, row.finish_reason = [], None
        numbers = [row.writes for row in self.rows]
        keys = self._keys("write", numbers)
        penalty = step.sampling.repetition_penalty
        known = self._own_tokens(number) if penalty != 1 else None
        for row in self.rows:
            row.writes += 1
        passes, began = 0, list(self.rows)
        for position in range(step.max_new_tokens):
            logits = self.model.logits(self.hidden)
            if known is not None:
                logits = penalized(logits, known, penalty)
            chosen = choose(logits, step.sampling, keys, position).to(self.model.device)
            best = logits.amax(dim=-1)
            if known is not None:
                known.scatter_(1, chosen[:, None], True)
            # One transfer per token: the ids, and whether they came from finite logits.
            ids, finite = torch.stack([chosen, best.isfinite().to(chosen.device).long()]).tolist()
            for row, token, is_finite in zip(self.rows, ids, finite, strict=True):
                if row.finish_reason is None and row.error is None:
                    _take(row, token, bool(is_finite), self.model.stop_tokens, row.steps[number])
            ended = [row.error is not None or row.finish_reason is not None for row in self.rows]
            goes_on = [row.error is None and row.finish_reason is not FinishReason.STOP for row in self.rows]
            if self.report is not None:
                tokens = sum(len(row.written) for row in began)
                self._tell(step=position + 1, going=ended.count(False), tokens=tokens)
            if last and all(ended):
                break
            if last and any(ended):
                staying = [index for index, done in enumerate(ended) if not done]
                self._select(staying)
                index = torch.tensor(staying, device=chosen.device)
                keys, chosen, goes_on = keys[index], chosen[index], [True] * len(staying)
                known = known[index] if known is not None else None
            self._feed(number, chosen, goes_on)
            passes += 1
            if all(row.error is not None or row.finish_reason is not None for row in self.rows):
                break
        if not last:
            self._select([index for index, row in enumerate(self.rows) if row.error is None])
        return passes

    def join(self, number: int) -> int:
        """Run the branches of every row as rows of their own, and concatenate their memories."""
        rows = list(self.rows)
        joins = [step for row in rows if isinstance(step := row.steps[number], Join)]
        plan = joins[0]
        # A branch draws random numbers of its own, whatever runs beside it.
        own = [
            [Row(branch, stream_key(row.seed, "branch", place), row.key) for place, branch in enumerate(join.branches)]
            for row, join in zip(rows, joins, strict=True)
        ]
        done: dict[int, Rollout] = {}
        for wave, places in enumerate(plan.waves):
            needed = plan.needed_from(wave)
            done = {place: rollout for place, rollout in done.items() if place in needed}
            # A row that broke in one branch goes on in none.
            going = [of_row for of_row in own if all(branch.error is None for branch in of_row)]
            alike: dict[tuple[bool, tuple[object, ...]], list[int]] = {}
            for place in places:
                watched = any(_asks_for_turn(branch, place) for branch in plan.branches)
                alike.setdefault((watched, shape(plan.branches[place])), []).append(place)
            for (watched, _), together in alike.items() if going else ():
                done |= dict.fromkeys(together, self._run_branches(plan, going, together, done, watched))
        for row, of_row in zip(rows, own, strict=True):
            row.error = next((branch.error for branch in of_row if branch.error is not None), None)
            row.vectors += [vectors for branch in of_row for vectors in branch.vectors]
            self._branches[id(row)] = tuple(tuple(branch.accounts) for branch in of_row)
        staying = [index for index, row in enumerate(rows) if row.error is None]
        self.rows = [rows[index] for index in staying]
        if not staying:
            self.memory = self.memory.select_rows([])
            return 0
        self._tell()
        parts = [done[place].of_rows([own[index][place] for index in staying])[0] for place in plan.joined_branches]
        done.clear()
        assert self.model.ropes is not None
        self.memory = LatentMemory.join(parts, self.model.ropes)
        return 0

    def _run_branches(
        self, plan: Join, rows: Sequence[Sequence[Row]], places: Sequence[int], done: Mapping[int, Rollout], watch: bool
    ) -> Rollout:
        """Run branches of one shape, of all rows, as one batch.

        Args:
            rows: ``[rows][branches]``.
            done: What ran the branches before these.
        """
        batch = [of_row[place] for place in places for of_row in rows]
        memory, attended = None, []
        if plan.branches[places[0]].recalled:
            joined: dict[tuple[int, ...], LatentMemory] = {}
            for place in places:
                recalled = plan.branches[place].recalled
                parts = [done[other].of_rows([of_row[other] for of_row in rows]) for other in recalled]
                attended += [seen for _, seen in parts if seen is not None and len(parts) == 1]
                if recalled not in joined:
                    assert self.model.ropes is not None
                    memories = [part for part, _ in parts]
                    joined[recalled] = memories[0] if len(parts) == 1 else LatentMemory.join(memories, self.model.ropes)
            memory = LatentMemory.stack([joined[plan.branches[place].recalled] for place in places])
        rollout = Rollout(
            self.model,
            self.alignment,
            batch,
            memory,
            sink=self.sink,
            releases=self.releases,
            watches_end=watch,
            report=self.report,
            batch=self.batch,
        )
        if memory is not None and attended:
            rollout.attended = torch.cat([pad(seen, (memory.slots - seen.shape[3], 0)) for seen in attended], dim=1)
        rollout.run()
        return rollout

    def of_rows(self, rows: Sequence[Row]) -> tuple[LatentMemory, Tensor | None]:
        """Return copies of the memory of some rows, and of what was attended to in their last turn."""
        at = {id(row): index for index, row in enumerate(self.rows)}
        index = [at[id(row)] for row in rows]
        return self.memory.select_rows(index), None if self.attended is None else self.attended[:, index]

    def _own_tokens(self, number: int) -> Tensor:
        """Return which tokens of the vocabulary the agent of each row has read or written before a step, ``[B, V]``.

        What other agents left in memory does not count: `generate` of transformers never sees it either.
        """
        width = self.model.causal.get_output_embeddings().weight.shape[0]
        known = torch.zeros(len(self.rows), width, dtype=torch.bool)
        for index, row in enumerate(self.rows):
            for step, account in zip(row.steps[:number], row.accounts, strict=False):
                if not isinstance(step, Join | Recall) and step.agent == row.agent(number):
                    tokens = step.tokens if isinstance(step, Read) else account.written
                    known[index, list(tokens)] = True
        return known.to(self.model.device)

    def _feed(self, number: int, tokens: Tensor, goes_on: list[bool]) -> None:
        """Put written tokens into memory; rows that have ended get a pad and keep their hidden state."""
        before = self.hidden
        real = torch.tensor(goes_on, device=self.model.device)[:, None]
        embeddings = self._embedded(tokens)[:, None]
        after = self._take_turn(number, embeddings, real, SlotKind.TEXT)
        assert before is not None
        self.hidden = torch.where(real.to(after.device), after, before)
        if (switch := self.model.switch) is not None:
            positions = self.memory.next_position.tolist()
            crossing = [
                index
                for index, (row, fed) in enumerate(zip(self.rows, goes_on, strict=True))
                if fed and row.reach <= switch and positions[index] == switch + 1
            ]
            if crossing:
                self._read_anew(crossing)

    def _read_anew(self, crossing: Sequence[int]) -> None:
        """Compute the memory of rows whose text has outgrown longrope's short factors once more, with the long ones.

        So does `generate` of the models that have them. Thoughts stay the vectors they were.
        """
        assert self.fed is not None
        assert self.hidden is not None
        chosen = torch.tensor(crossing, dtype=torch.long, device=self.memory.device)
        embeddings, valid = torch.cat(self.fed, dim=1)[chosen], self.memory.valid[chosen]
        anew = LatentMemory(len(crossing), self.memory.layers, self.memory.device, self.memory.slots)
        rows, memory = self.rows, self.memory
        self.rows, self.memory = [rows[index] for index in crossing], anew
        try:
            hidden = self.forward(embeddings, valid, "", SlotKind.PROMPT)
        finally:
            self.rows, self.memory = rows, memory
        memory.replace(chosen, anew)
        self.hidden = self.hidden.index_copy(0, chosen.to(self.hidden.device), hidden)

    def forward(
        self, embeddings: Tensor, valid: Tensor, agents: str | Sequence[str], kind: SlotKind, watch: Watch | None = None
    ) -> Tensor:
        """Run the decoder over new slots; return the hidden state of the last one, ``[B, E]``.

        Args:
            embeddings: ``[B, T, E]``.
            valid: ``[B, T]`` bool; padding on the left.
            agents: Of each row, or one for all.
            watch: Sees what is attended to.
        """
        model, new = self.model, valid.shape[1]
        positions = self.memory.extend(valid, agents, kind)
        masks: dict[str | None, Tensor] = {}
        for name, window in model.windows.items():
            mask = visibility(self.memory, new, window)
            masks[name] = additive(mask, embeddings.dtype) if model.attention == "eager" else mask
        with model.lock, watching(model, watch) if watch else nullcontext(), self._row_lengths():
            output = model.decoder(
                inputs_embeds=embeddings,
                attention_mask=masks.get(None, masks),
                position_ids=positions,
                past_key_values=MemoryCache(self.memory),
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def forget_newest(self, count: int) -> None:
        """Take back the newest `count` tokens of one row alone; a Read has to follow."""
        self.memory.forget_newest(torch.ones(1, count, dtype=torch.bool, device=self.memory.device))
        if self.fed is not None:
            whole = torch.cat(self.fed, dim=1)
            self.fed = [whole[:, : whole.shape[1] - count]]

    def _row_lengths(self) -> AbstractContextManager[None]:
        """Return the context in which longrope takes its factors by row; one that does nothing for other models."""
        if self.model.switch is None:
            return nullcontext()
        reach = torch.tensor([row.reach for row in self.rows], device=self.memory.device)
        return row_lengths(torch.maximum(self.memory.next_position, reach), self.model.switch)

    def agents(self, number: int) -> list[str]:
        """Return who does step `number` in each row."""
        return [row.agent(number) for row in self.rows]

    def slots_ahead(self, number: int) -> int:
        """Return the slots that steps from `number` on append, before memory is made anew or a text begins."""
        return _slots_ahead([row.steps[number:] for row in self.rows])

    def _take_turn(self, number: int, embeddings: Tensor, valid: Tensor, kind: SlotKind) -> Tensor:
        """Run a part of an agent's turn, and see what it attends to where the hand-over that ends it wants to know."""
        ahead = self.rows[0].steps[number:]
        ends_here = not any(isinstance(step, Handover) for step in ahead)
        watched = self.watches_end if ends_here else handover.wants_sender(ahead)
        watch = Watch(valid, self.memory) if watched else None
        hidden = self.forward(embeddings, valid, self.agents(number), kind, watch)
        if self.fed is not None:
            self.fed.append(embeddings)
        if watch is not None:
            seen, _ = watch.attention(self.model)  # [L, B, H, S]
            if self.attended is not None:
                seen[..., : self.attended.shape[3]] += self.attended
            self.attended = seen
        return hidden

    def _vectors(self, agent: str, prompt: Tensor, thoughts: Tensor, index: int) -> AgentVectors:
        assert self.hidden is not None
        prompt, thoughts, hidden = (part.float().cpu() for part in (prompt, thoughts, self.hidden[index]))
        return AgentVectors(agent=agent, prompt=prompt, thoughts=thoughts, hidden=hidden)

    def _keys(self, domain: str, numbers: Sequence[int]) -> Tensor:
        keys = [stream_key(row.seed, domain, number) for row, number in zip(self.rows, numbers, strict=True)]
        return torch.tensor(keys, dtype=torch.long, device=self.model.device)

    def _drop_broken(self, finite: Sequence[bool], messages: Sequence[str]) -> None:
        for row, is_finite, message in zip(self.rows, finite, messages, strict=True):
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
        if self.thought is not None:
            self.thought = self.thought[torch.tensor(staying, dtype=torch.long, device=self.thought.device)]
        if self.fed is not None:
            kept = torch.tensor(staying, dtype=torch.long, device=self.model.device)
            self.fed = [embeddings[kept] for embeddings in self.fed]
        if self.attended is not None:
            self.attended = self.attended[:, torch.tensor(staying, dtype=torch.long, device=self.attended.device)]
        self.rows = [self.rows[index] for index in staying]

    def _account(self, number: int, rows: Sequence[Row], passes: int, seconds: float) -> None:
        remaining = dict(zip(map(id, self.rows), self.memory.real_slots.tolist(), strict=True))
        for row, handed, thinking in zip(rows, self._handed, self._thinking, strict=True):
            step = row.steps[number]
            before = row.accounts[-1].slots if row.accounts else 0
            written = tuple(row.written) if isinstance(step, Write) else ()
            # The last token of a text that was cut is read back only where a step follows.
            unread = row.finish_reason is FinishReason.LENGTH and len(row.accounts) + 1 == len(row.steps)
            fed = len(written) - unread
            branches = self._branches.get(id(row), ())
            # What a Join took is in the accounts of its branches; its own is the joining.
            inside = sum(account.seconds for branch in branches for account in branch)
            row.accounts.append(
                StepAccount(
                    verb=type(step).__name__,
                    agent=row.agent(number),
                    prompt_tokens=len(step.tokens) if isinstance(step, Read) else 0,
                    thoughts=step.steps if isinstance(step, Think) else 0,
                    written=written,
                    # A row that left the batch took what it wrote along; count what it had.
                    slots=remaining.get(id(row), before + fed),
                    memory_bytes=remaining.get(id(row), before + fed) * self.memory.slot_bytes,
                    forward_passes=fed if isinstance(step, Write) else passes,
                    seconds=max(seconds / len(rows) - inside, 0.0),
                    thinking=thinking,
                    handover=handed,
                    branches=branches,
                )
            )


def _take(row: Row, token: int, is_finite: bool, stop_tokens: frozenset[int], step: Step) -> None:
    """Add a token to what a row wrote, or end the row."""
    assert isinstance(step, Write)
    if not is_finite:
        row.error = NumericalError(f"a logit of agent {step.agent!r} is not finite; try --dtype float32")
    elif token in stop_tokens:
        row.finish_reason = FinishReason.STOP
    else:
        row.written.append(token)
        if len(row.written) == step.max_new_tokens:
            row.finish_reason = FinishReason.LENGTH


def positions_ahead(steps: Sequence[Step]) -> int:
    """Return the positions a row takes before its last text begins, as far as anybody knows.

    A text in between counts at its longest, so that what is read after it is rotated like what stands before it.
    """
    total = 0
    for number, step in enumerate(steps, start=1):
        match step:
            case Read():
                total += len(step.tokens)
            case Think():
                total += step.steps
            case Write() if number < len(steps):
                total += step.max_new_tokens
            case _:
                pass
    return total


def _asks_for_turn(branch: Program, place: int) -> bool:
    """Return whether a branch goes on from one other with a hand-over that asks what was attended to there."""
    hands_over = isinstance(next(iter(branch.steps[1:]), None), Handover)  # nothing need follow a Recall
    return branch.recalled == (place,) and hands_over and handover.wants_sender(branch)


def _makes_memory_anew(step: Step) -> bool:
    return isinstance(step, Join) or (isinstance(step, Handover) and not step.passes_everything)


def _slots_ahead(rows: Sequence[tuple[Step, ...]]) -> int:
    """Return the slots a batch appends, pads included, before its memory is made anew, or a text begins.

    Nobody knows how long a text will be. A prompt that is read on trial before a hand-over takes room for a moment.
    """
    total = 0
    for number, steps in enumerate(zip(*rows, strict=True)):
        step = steps[0]
        if isinstance(step, Read):
            total += max(len(read.tokens) for read in steps if isinstance(read, Read))
        elif isinstance(step, Think):
            total += step.steps
        elif isinstance(step, Write) or _makes_memory_anew(step):
            if handover.wants_receiver(step):
                ahead = [handover.next_read(row[number:]) for row in rows]
                total += max((len(read.tokens) for _, read in filter(None, ahead)), default=0)
            return total
    return total
