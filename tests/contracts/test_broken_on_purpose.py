"""Proof that the laws can fail: the package is broken in a way that happened somewhere, and the check must notice.

Every check used here passes on the unbroken package (`test_backend_laws.py`, `test_exactness.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import laws
from contracts.laws import GREEDY, WARM, BrokenLaw, Subject, chain, prompts
from latentmas.backends import scripted
from latentmas.backends.hf import rollout, sampling
from latentmas.backends.hf.rollout import Rollout
from latentmas.memory import LatentMemory
from latentmas.program import Sampling
from parity.oracle import Oracle

Patch = pytest.MonkeyPatch
BATCH = "a batch of 2 gives what each job gives alone"
ORACLE = "tokens equal those of the oracle"


@pytest.fixture
def transformers(tiny: Any) -> Subject:
    tiny.model()  # verified before anything is broken
    return Subject("transformers", lambda capacity: tiny.backend(batch_size=capacity, realign=True), False)


@pytest.fixture
def scripted_subject() -> Subject:
    return Subject("scripted", lambda capacity: scripted.ScriptedBackend(capacity=capacity), True)


def check_oracle(tiny: Any, keep: str) -> None:
    """One ragged pair of rows against the oracle, with a hand-over."""
    rows = [prompts(row) for row in range(4)]
    backend = tiny.backend()
    done = backend.run([chain(row, thoughts=4, keep=keep, every=True) for row in rows])
    oracle = Oracle(backend.model.causal)
    for row, completion in zip(rows, done, strict=True):
        expected = oracle.chain(
            row,
            thoughts=4,
            realign=False,
            max_new_tokens=16,
            end=backend.model.stop_tokens,
            handover=keep,
            every=True,
        )
        laws.promise(completion.steps[-1].written == expected.written, "tokens equal those of the oracle")


def fails(law: str, check: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises(BrokenLaw, match=law):
        check(*arguments)


def test_an_all_ones_past_mask_is_noticed(tiny: Any, transformers: Subject, monkeypatch: Patch) -> None:
    right = rollout.visibility

    def blind(memory: LatentMemory, new: int, window: int | None) -> Tensor:
        everyone = SimpleNamespace(
            slots=memory.slots,
            device=memory.device,
            positions=memory.positions,
            valid=torch.ones_like(memory.valid),
        )
        return right(everyone, new, window)  # type: ignore[arg-type]

    monkeypatch.setattr(rollout, "visibility", blind)
    fails(BATCH, laws.check_others_do_not_matter, transformers, laws.mixed_work(GREEDY))
    fails(ORACLE, check_oracle, tiny, "full")


def test_positions_that_count_slots_are_noticed(tiny: Any, monkeypatch: Patch) -> None:
    right = LatentMemory.extend

    def by_slots(self: LatentMemory, *arguments: Any) -> Tensor:
        self.next_position = self.real_slots
        return right(self, *arguments)

    monkeypatch.setattr(LatentMemory, "extend", by_slots)
    check_oracle(tiny, "full")  # while nothing is dropped, slots and positions are the same
    fails(ORACLE, check_oracle, tiny, "thoughts")
    fails(ORACLE, check_oracle, tiny, "last_agent")
    fails("positions are true after dropping", laws.check_positions_after_dropping, tiny.memories)


def test_positions_that_count_padding_are_noticed(tiny: Any, transformers: Subject, monkeypatch: Patch) -> None:
    right = LatentMemory.extend

    def by_width(self: LatentMemory, *arguments: Any) -> Tensor:
        self.next_position = torch.full_like(self.next_position, self.slots)
        return right(self, *arguments)

    monkeypatch.setattr(LatentMemory, "extend", by_width)
    fails(BATCH, laws.check_others_do_not_matter, transformers, laws.mixed_work(GREEDY))
    fails(ORACLE, check_oracle, tiny, "full")


def test_a_hidden_state_taken_at_a_left_pad_is_noticed(transformers: Subject, monkeypatch: Patch) -> None:
    right = Rollout.forward

    def at_the_wrong_end(self: Rollout, embeddings: Tensor, *arguments: Any) -> Tensor:
        decoder = self.model.decoder
        flipped: list[Any] = []
        hook = decoder.register_forward_hook(lambda *call: flipped.append(call[-1].last_hidden_state[:, 0]))
        try:
            right(self, embeddings, *arguments)
        finally:
            hook.remove()
        return flipped[0]  # type: ignore[no-any-return]

    monkeypatch.setattr(Rollout, "forward", at_the_wrong_end)
    fails(BATCH, laws.check_others_do_not_matter, transformers, laws.mixed_work(GREEDY))


def test_right_padding_is_noticed(tiny: Any, transformers: Subject, monkeypatch: Patch) -> None:
    def padded_on_the_right(self: Rollout, number: int) -> int:
        tokens = [row.steps[number].tokens for row in self.rows]  # type: ignore[union-attr]
        width = max(map(len, tokens))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens])
        valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in tokens])
        embeddings = self.model.causal.get_input_embeddings()(ids)
        self.hidden = self.forward(embeddings, valid, self.agents(number), rollout.SlotKind.PROMPT)
        return 1

    monkeypatch.setattr(Rollout, "read", padded_on_the_right)
    fails(BATCH, laws.check_others_do_not_matter, transformers, laws.mixed_work(GREEDY))
    fails(ORACLE, check_oracle, tiny, "full")


def test_one_stream_for_every_seed_is_noticed(transformers: Subject, monkeypatch: Patch) -> None:
    monkeypatch.setattr(rollout, "stream_key", lambda seed, domain, number: sampling.stream_key(0, domain, number))
    fails("each seed has its sample", laws.check_seeds_decide_samples_and_noise, transformers)
    fails("jobs with different seeds", laws.check_draws_are_a_function_of_seed_write_and_step, transformers)


def test_a_generator_shared_by_the_rows_is_noticed(transformers: Subject, monkeypatch: Patch) -> None:
    generator = torch.Generator()

    def from_one_generator(logits: Tensor, how: Sampling, keys: Tensor, step: int) -> Tensor:
        if how.greedy:
            return logits.argmax(dim=-1)
        if step == 0:
            generator.manual_seed(int(keys[0]))
        weights = torch.softmax(logits.double() / how.temperature, dim=-1)
        return torch.multinomial(weights, 1, generator=generator).squeeze(1)

    monkeypatch.setattr(rollout, "choose", from_one_generator)
    fails(BATCH, laws.check_others_do_not_matter, transformers, laws.mixed_work(WARM))


def test_a_stream_that_noise_advances_is_noticed(transformers: Subject, monkeypatch: Patch) -> None:
    drawn = count()

    def advancing(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments: right(*arguments[:-1], arguments[-1] + next(drawn))

    def noise(keys: Tensor, step: int, width: int) -> Tensor:
        next(drawn)
        return sampling.normal(keys, step, width)

    monkeypatch.setattr(rollout, "choose", advancing(sampling.choose))
    monkeypatch.setattr(rollout, "normal", noise)
    fails("noise thoughts take nothing", laws.check_draws_are_a_function_of_seed_write_and_step, transformers)


def test_one_stream_for_all_writes_of_a_job_is_noticed(transformers: Subject, monkeypatch: Patch) -> None:
    monkeypatch.setattr(rollout, "stream_key", lambda seed, domain, number: sampling.stream_key(seed, domain, 0))
    fails("the second Write of a job", laws.check_draws_are_a_function_of_seed_write_and_step, transformers)


def test_noise_that_starts_again_at_every_think_is_noticed(transformers: Subject, monkeypatch: Patch) -> None:
    right = Rollout.think

    def forgetful(self: Rollout, *arguments: Any) -> int:
        for row in self.rows:
            row.thoughts = 0
        return right(self, *arguments)

    monkeypatch.setattr(Rollout, "think", forgetful)
    fails("two Thinks of noise are one", laws.check_steps_compose, transformers)


def test_a_handover_that_drops_nothing_is_noticed(tiny: Any, transformers: Subject, monkeypatch: Patch) -> None:
    monkeypatch.setattr(LatentMemory, "keep", lambda self, chosen, **_: self.clone())
    fails("what a hand-over of thoughts drops", laws.check_dropped_slots_are_dropped, transformers)
    fails("after Handover of refiner", laws.check_accounts_add_up, transformers)
    fails(ORACLE, check_oracle, tiny, "thoughts")


def test_a_gather_that_leaves_positions_behind_is_noticed(tiny: Any, monkeypatch: Patch) -> None:
    right = LatentMemory.keep

    def compacted(self: LatentMemory, chosen: Tensor, **how: Any) -> LatentMemory:
        kept = right(self, chosen, **how)
        kept._positions[..., : kept.slots] = ((kept.valid.long().cumsum(dim=1) - 1) * kept.valid)[None, :, None]
        return kept

    monkeypatch.setattr(LatentMemory, "keep", compacted)
    fails("positions are true after dropping", laws.check_positions_after_dropping, tiny.memories)


def test_end_of_text_left_in_memory_is_noticed(tiny: Any, transformers: Subject, monkeypatch: Patch) -> None:
    right = Rollout._feed
    monkeypatch.setattr(
        Rollout, "_feed", lambda self, number, tokens, goes_on: right(self, number, tokens, [True] * len(goes_on))
    )
    fails("a text that was written counts as a text read", laws.check_writing_leaves_no_end_of_text, transformers)


def test_a_scripted_stream_without_the_seed_is_noticed(scripted_subject: Subject, monkeypatch: Patch) -> None:
    right = scripted._gumbel
    monkeypatch.setattr(scripted, "_gumbel", lambda seed, *rest: right(0, *rest))
    fails("each seed has its sample", laws.check_seeds_decide_samples_and_noise, scripted_subject)


def test_scripted_positions_that_count_slots_are_noticed(scripted_subject: Subject, monkeypatch: Patch) -> None:
    right = scripted._Run._hand_over

    def by_slots(self: Any, step: Any) -> None:
        right(self, step)
        self.next_position = len(self.slots)

    monkeypatch.setattr(scripted._Run, "_hand_over", by_slots)
    fails("dropped slots keep their positions", laws.check_dropping_frees_no_position, scripted_subject)


def test_a_scripted_handover_that_drops_nothing_is_noticed(scripted_subject: Subject, monkeypatch: Patch) -> None:
    monkeypatch.setattr(scripted._Run, "_hand_over", lambda self, step: None)
    fails("what a hand-over of thoughts drops", laws.check_dropped_slots_are_dropped, scripted_subject)
