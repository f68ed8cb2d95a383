"""longrope: which factors a row takes depends on its own length, never on its neighbours."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from latentmas import Session
from latentmas.backends.hf.load import describe_model
from latentmas.backends.hf.rollout import Rollout
from latentmas.backends.hf.verify import verified
from latentmas.errors import ContextLimitError
from latentmas.program import Handover, KeepSpec, Positions, Program, Read, Think, Write

SWITCH = 64


@pytest.fixture(scope="module")
def model(tiny):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [float(1 + place) for place in range(8)],
        "original_max_position_embeddings": SWITCH,
    }
    causal = tiny.small(
        "phi3",
        max_position_embeddings=512,
        original_max_position_embeddings=SWITCH,
        rope_parameters=rope,
        pad_token_id=0,
    )
    described = verified(describe_model(causal, tiny.tokenizer), thinks=True)
    assert described.switch == SWITCH
    return described


def tokens(count, seed=0):
    return tuple(torch.randint(4, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def written(backend, programs):
    return [completion.steps[-1].written for completion in backend.run(programs)]


def test_a_row_is_the_same_alone_beside_a_long_row_and_in_generate(tiny, model):
    backend = tiny.open(model)
    rows = [tokens(count, count) for count in (14, 30, 55, 63, 64, 65, 120)]
    programs = [Program((Read(agent="a", tokens=row), Write(agent="a", max_new_tokens=16))) for row in rows]
    together = written(backend, programs)
    for row, program, ours in zip(rows, programs, together, strict=True):
        assert written(backend, [program]) == [ours]
        mask = torch.ones(1, len(row), dtype=torch.long)
        whole = model.causal.generate(
            torch.tensor([row]), attention_mask=mask, do_sample=False, max_new_tokens=16, pad_token_id=0
        )
        theirs = whole[0, len(row) :].tolist()
        end = next((at for at, token in enumerate(theirs) if token in model.stop_tokens), None)
        assert list(ours) == theirs[:end], f"a prompt of {len(row)} tokens"


def test_reading_in_parts_is_reading_at_once_on_both_sides_of_the_switch(tiny, model):
    backend = tiny.open(model)
    for count in (50, 64, 70, 130):
        row = tokens(count, count)
        once = Program((Read(agent="a", tokens=row), Write(agent="a", max_new_tokens=12)))
        parts = Program(
            (Read(agent="a", tokens=row[:40]), Read(agent="a", tokens=row[40:]), Write(agent="a", max_new_tokens=12))
        )
        assert written(backend, [once]) == written(backend, [parts])


def test_thoughts_beyond_the_switch_do_not_depend_on_neighbours(tiny, model):
    backend = tiny.open(model)
    programs = [
        Program(
            (
                Read(agent="a", tokens=tokens(count, count)),
                Think(agent="a", steps=6),
                Handover(agent="a"),
                Read(agent="b", tokens=tokens(9)),
                Write(agent="b", max_new_tokens=20),
            )
        )
        for count in (5, 30, 45, 58, 100)
    ]
    assert written(backend, programs) == [written(backend, [program])[0] for program in programs]


def test_a_text_that_crosses_after_slots_were_dropped_is_refused(tiny, model):
    cut = Handover(agent="a", keep=KeepSpec(name="thoughts"))
    program = Program(
        (
            Read(agent="a", tokens=tokens(40)),
            Think(agent="a", steps=2),
            cut,
            Read(agent="b", tokens=tokens(9)),
            Write(agent="b", max_new_tokens=40),
        )
    )
    with pytest.raises(ContextLimitError, match="rotates keys in another way beyond 64"):
        tiny.open(model).run([program])


def test_a_session_does_not_read_over_the_switch(tiny, model):
    session = Session(tiny.open(model))
    session._do(Read(agent="a", tokens=tokens(50)))
    with pytest.raises(ContextLimitError, match="Run all of it as one Program"):
        session._do(Read(agent="b", tokens=tokens(50)))
    assert session.memory.slots == 50


def test_messages_in_a_row_are_one_chat_below_the_switch_and_refused_over_it(tiny, model):
    backend = tiny.open(replace(model, stop_tokens=frozenset()))
    session = Session(backend).read("a", "One.").read("a", "Two.")
    assert sum(len(part[0]) for part in session._rollout.fed) == session.memory.slots < SWITCH
    with pytest.raises(ContextLimitError, match="Run all of it as one Program"):
        session.read("a", "Three, and much more than fits below the switch.")
    text = session.write("a", 20)
    [completion] = backend.run([session.program])
    assert completion.text == text


def test_keys_cannot_be_moved(model):
    assert model.ropes is None
    assert "depend on length" in model.unmovable


def test_what_follows_a_text_that_ended_early_is_rotated_like_what_stands_before_it(tiny, model, monkeypatch):
    program = Program(
        (
            Read(agent="a", tokens=tokens(34, 34)),
            Write(agent="a", max_new_tokens=40),
            Read(agent="b", tokens=tokens(5, 2)),
            Write(agent="b", max_new_tokens=2),
        )
    )
    lengths = []
    forward = Rollout.forward

    def spied(self, *given):
        hidden = forward(self, *given)
        lengths.append(max(self.rows[0].reach, int(self.memory.next_position[0])))
        return hidden

    monkeypatch.setattr(Rollout, "forward", spied)
    done = tiny.open(model).run([program])[0]
    assert 34 + len(done.steps[1].written) + 5 + 2 <= SWITCH, "the text ended early"
    assert min(lengths) > SWITCH


def test_a_text_may_cross_where_memory_that_was_cut_has_the_long_factors_already(tiny, model):
    program = Program(
        (
            Read(agent="a", tokens=tokens(50)),
            Think(agent="a", steps=2),
            Handover(agent="a", keep=KeepSpec(name="thoughts"), positions=Positions.PUBLISHED),
            Read(agent="b", tokens=tokens(40)),
            Write(agent="b", max_new_tokens=40),
        )
    )
    endless = replace(model, stop_tokens=frozenset())
    assert len(tiny.open(endless).run([program])[0].steps[-1].written) == 40


def test_factors_are_chosen_by_row_whatever_the_model_calls_what_turns_its_keys(tiny, model):
    causal = deepcopy(model.causal)
    del causal.model.rotary_emb.forward, causal.model.rotary_emb.latentmas_by_row
    causal.model.turner = causal.model.rotary_emb
    del causal.model.rotary_emb
    decode = causal.model.forward

    def forward(*given, **more):
        causal.model.__dict__["rotary_emb"] = causal.model.turner
        try:
            return decode(*given, **more)
        finally:
            del causal.model.__dict__["rotary_emb"]

    causal.model.forward = forward
    assert verified(describe_model(causal, tiny.tokenizer)).switch == SWITCH
