"""Programs as requests: where chunks end, which token stands for a thought, and what the accounts say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.backends.vllm.chunks import chunk_length, is_thought, thought_positions
from latentmas.backends.vllm.placeholder import choose_placeholder
from latentmas.backends.vllm.requests import Passage, write_seed
from latentmas.errors import CapabilityError
from latentmas.program import Handover, Program, Read, Sampling, Think, Write
from latentmas.protocols import ThoughtAccount
from latentmas.samples import FinishReason

L = 9
PROMPTS = st.lists(st.sampled_from([1, 2, L]), min_size=1, max_size=40)


@given(PROMPTS, st.integers(1, 50))
def test_chunks_cover_a_prompt_and_hold_a_thought_only_at_their_start(prompt, budget):
    thoughts = thought_positions(prompt, L)
    start, seen = 0, []
    while start < len(prompt):
        length = chunk_length(thoughts, start, min(budget, len(prompt) - start))
        assert length > 0
        chunk = prompt[start : start + length]
        # At position 0 the id is an ordinary token.
        assert L not in chunk[1:]
        seen += chunk
        start += length
    assert seen == prompt


@given(PROMPTS)
def test_a_long_budget_takes_one_chunk_per_thought_and_one_more(prompt):
    thoughts = thought_positions(prompt, L)
    start = chunks = 0
    while start < len(prompt):
        start += chunk_length(thoughts, start, 10_000)
        chunks += 1
    assert chunks == len(thoughts) + 1
    assert [position for position in range(len(prompt)) if is_thought(thoughts, position)] == list(thoughts)


def test_a_budget_of_nothing_stays_nothing():
    assert chunk_length((3, 4), 1, 0) == 0
    assert chunk_length((), 1, 0) == 0


# Passages


def read(*tokens, agent="a"):
    return Read(agent=agent, tokens=tokens)


WARM = Sampling(temperature=0.7, top_p=0.9)
TEAM = Program(
    (
        read(1, 2),
        Think(agent="a", steps=2),
        Handover(agent="a"),
        read(3, agent="b"),
        Think(agent="b", steps=0),
        Handover(agent="b"),
        read(4, 5, agent="c"),
        Write(agent="c", max_new_tokens=7, sampling=WARM),
    )
)


def test_a_team_is_one_request():
    passage = Passage(TEAM, seed=3, placeholder=L)
    request = passage.request()
    assert request.tokens == (1, 2, L, L, 3, 4, 5)
    assert (request.max_tokens, request.sampling, request.seed) == (7, WARM, write_seed(3, 0))
    passage.take([6, 6, 6], FinishReason.STOP, reused=4)
    assert passage.ended
    accounts = passage.accounts(slot_bytes=10, seconds=8.0)
    assert [account.slots for account in accounts] == [2, 4, 4, 5, 5, 5, 7, 10]
    assert [account.memory_bytes for account in accounts] == [10 * account.slots for account in accounts]
    assert [account.forward_passes for account in accounts] == [1, 2, 0, 1, 0, 0, 1, 3]
    assert [account.reused_slots for account in accounts] == [2, 2, 0, 0, 0, 0, 0, 0]
    assert accounts[-1].written == (6, 6, 6)
    assert [account.seconds for account in accounts] == [1, 2, 0, 1, 0, 0, 1, 3]


def test_what_an_engine_told_of_thoughts_stands_in_the_account_of_their_think():
    first, second, third = (
        ThoughtAccount(cosines=(), hidden_norms=(number,), effective_rank=1.0, collapsed_after=None)
        for number in (1.0, 2.0, 3.0)
    )
    write = Write(agent="a", max_new_tokens=2)
    thinks = [Think(agent="a", steps=steps) for steps in (2, 0, 1, 3)]
    passage = Passage(Program((read(1), *thinks[:3], write, read(2), thinks[3], write)), seed=0, placeholder=L)
    assert passage.request().thinks == ((1, 2), (3, 1))
    passage.take([7], FinishReason.STOP, 0, (first, second))
    assert passage.request().thinks == ((6, 3),)  # behind the text and what was read
    passage.take([7], FinishReason.STOP, 0, (third,))
    told = [account.thinking for account in passage.accounts(slot_bytes=1, seconds=1.0)]
    assert [account and account.hidden_norms for account in told] == [None, (1,), None, (2,), None, None, (3,), None]


def test_an_engine_that_told_nothing_of_thoughts_leaves_accounts_without():
    passage = Passage(TEAM, seed=3, placeholder=L)
    passage.take([6], FinishReason.STOP, reused=0)
    assert {account.thinking for account in passage.accounts(slot_bytes=1, seconds=1.0)} == {None}


def test_the_last_token_of_a_text_that_was_cut_is_not_in_memory():
    passage = Passage(TEAM, seed=3, placeholder=L)
    passage.take([6] * 7, FinishReason.LENGTH, reused=0)
    assert passage.accounts(slot_bytes=1, seconds=0.0)[-1].slots == 13


def test_a_program_that_goes_on_after_a_text_is_one_request_more_on_top_of_it():
    program = Program(
        (
            read(1),
            Write(agent="a", max_new_tokens=2),
            Think(agent="a", steps=1),
            read(2, agent="b"),
            Write(agent="b", max_new_tokens=3),
        )
    )
    passage = Passage(program, seed=3, placeholder=L)
    assert passage.request().tokens == (1,)
    passage.take([7, 8], FinishReason.LENGTH, reused=0)
    assert not passage.ended
    assert passage.request().tokens == (1, 7, 8, L, 2)
    assert passage.request().seed == write_seed(3, 1) != write_seed(3, 0)
    passage.take([5], FinishReason.STOP, reused=2)
    accounts = passage.accounts(slot_bytes=1, seconds=1.0)
    assert [account.slots for account in accounts] == [1, 3, 4, 5, 6]


def test_a_program_that_writes_nothing_is_read_all_the_same():
    passage = Passage(Program((read(1, 2), Think(agent="a", steps=1))), seed=0, placeholder=L)
    assert (passage.request().tokens, passage.request().max_tokens) == ((1, 2, L), 1)
    passage.take([5], FinishReason.LENGTH, reused=0)
    assert passage.ended
    assert [account.slots for account in passage.accounts(slot_bytes=1, seconds=1.0)] == [2, 3]
    assert passage.replies[0].finish_reason is None


@given(st.integers(-(2**70), 2**70), st.integers(0, 5))
def test_seeds_fit_what_an_engine_takes(seed, number):
    assert 0 <= write_seed(seed, number) < 2**63


# The placeholder


def tokenizer(size=300, template="", **special):
    added = {number: text for text, number in special.pop("added", {}).items()}
    ids = {"bos_token_id": None, "eos_token_id": 256, "unk_token_id": None, "pad_token_id": None, **special}

    class Fake(SimpleNamespace):
        def __len__(self):
            return size

    return Fake(chat_template=template, added_tokens_decoder=added, **ids)


@pytest.mark.parametrize(
    ("given_", "vocabulary", "with_text", "expected"),
    [
        (tokenizer(added={"<|image_pad|>": 290}), 320, False, 319),
        (tokenizer(added={"<|im_end|>": 256, "<|image_pad|>": 290}), 320, True, 290),
        (tokenizer(added={"<|image_pad|>": 290}), 300, False, 290),
        (tokenizer(added={"<|reserved_special_token_7|>": 280, "<|eot_id|>": 281}), 300, False, 280),
        (tokenizer(added={"<unused99>": 105}), 300, False, 105),
        (tokenizer(added={"[control_8]": 20}), 300, False, 20),
        (tokenizer(added={"<SPECIAL_20>": 20}), 300, False, 20),
        # A token that the template writes is in every prompt.
        (tokenizer(template="<|vision_start|>", added={"<|vision_start|>": 5, "<|fim_pad|>": 6}), 300, False, 6),
        (tokenizer(added={"<|pad|>": 7, "<|im_start|>": 8}, pad_token_id=7), 300, False, 7),
        (tokenizer(added={"<|im_start|>": 8}), 301, True, 300),
    ],
)
def test_the_placeholder_is_a_token_nobody_means(given_, vocabulary, with_text, expected):
    assert choose_placeholder(given_, vocabulary=vocabulary, stop_tokens=[256], with_text=with_text) == expected


@pytest.mark.parametrize("special", [{"pad_token_id": 256, "added": {"<|end|>": 256}}, {"added": {"<|im_start|>": 8}}])
def test_a_model_without_such_a_token_is_refused(special):
    with pytest.raises(CapabilityError, match=r"no token to stand for a thought.*transformers backend needs none"):
        choose_placeholder(tokenizer(**special), vocabulary=300, stop_tokens=[256])
