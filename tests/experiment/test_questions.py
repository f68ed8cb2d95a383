"""A team is asked a question or a dialogue; agents read all of it, and the record says what was asked last."""

from dataclasses import replace

import pytest

from latentmas import Message, Team
from latentmas.backends.hf.chat import ChatCodec
from latentmas.errors import ConfigError, DataError
from latentmas.experiment.questions import sample_of, samples_of

SIX = ("Why?", "Because.", "Sure?", "Yes.", "Really?", "Yes, really.", "And then?")


def dialogue(*contents, system=None):
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def as_chat(messages):
    return [Message(message["role"], message["content"]) for message in messages]


@pytest.fixture(scope="module")
def single(model_folder):
    return Team(str(model_folder), method="baseline", max_new_tokens=4)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_one_agent_alone_reads_a_dialogue_as_it_stands(single, system):
    for turns in (1, 3, 7):
        messages = dialogue(*SIX[:turns], system=system)
        encoded = single.backend.codec.encode_chat(as_chat(messages))
        for asked in (messages, as_chat(messages), tuple(messages)):
            record = single.ask(asked)
            assert record.question == SIX[turns - 1]
            assert record.agents[0].prompt == encoded.text
            assert record.agents[0].prompt_ids == encoded.tokens
        if system is not None:
            apart = single.ask(dialogue(*SIX[:turns]), system=system)
            assert (apart.id, apart.text, apart.agents[0].prompt_ids) == (record.id, record.text, encoded.tokens)


def test_what_was_answered_goes_on_as_a_dialogue(single):
    said = []
    for question in ("Why?", "And then?", "What else?"):
        record = single.ask([*said, Message("user", question)])
        said += [Message("user", question), Message("assistant", record.text)]
        assert record.agents[0].prompt_ids == single.backend.codec.encode_chat(said[:-1]).tokens


@pytest.mark.parametrize("method", ["latent_mas", "text_mas"])
def test_every_agent_of_a_team_reads_the_turns_before_and_then_its_own_prompt(model_folder, method):
    team = Team(str(model_folder), method=method, latent_steps=1, max_new_tokens=4)
    alone, system, whole = (
        team.ask(asked)
        for asked in ("And then?", dialogue("And then?", system="Be brief."), dialogue("Why?", "So.", "And then?"))
    )
    for agent, plain, told in zip(whole.agents, alone.agents, system.agents, strict=True):
        turns = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
        head, _, own = plain.prompt.rpartition("<|im_start|>user\n")
        assert agent.prompt.startswith(head + turns + "<|im_start|>user\n")
        assert told.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        assert head not in told.prompt or not head, "it stands in place of the prompt set's"
        if method == "latent_mas":  # texts differ with what was read
            assert agent.prompt == head + turns + "<|im_start|>user\n" + own
            assert told.prompt == f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{own}"
    assert whole.question == alone.question == "And then?"
    assert team.ask("And then?", system="Be brief.").agents[0].prompt == system.agents[0].prompt


def test_questions_and_dialogues_are_asked_together_in_order(single):
    asked = ["Why?", dialogue("Why?"), dialogue("Why?", "So.", "Why?"), "Why?"]
    together = single.ask_all(asked)
    assert [record.text for record in together] == [single.ask(each).text for each in asked]
    assert len({record.id for record in together}) == 4
    assert [record.id for record in single.ask_all(each for each in asked[:1])] == [together[0].id]


def test_a_text_may_come_in_parts():
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "3?"}]
    assert sample_of([{"role": "user", "content": parts, "name": None}]) == sample_of(dialogue("2 + 3?"))


def test_what_is_sampled_depends_on_the_whole_dialogue():
    asked = ["b", dialogue("b"), dialogue("a", "x", "b"), dialogue("a", "y", "b"), dialogue("b", system="s")]
    assert len({sample.id for sample in samples_of(asked)}) == 5
    assert samples_of(["b"])[0].id == "3e23e8160039594a-0", "ids of plain questions stay, and with them their samples"


def test_a_dialogue_that_the_template_refuses_is_refused_before_anything_is_asked(model_folder, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.content }}]{% endfor %}"
    )
    team = Team(str(model_folder), method="baseline", max_new_tokens=3)
    team.method = replace(team.method, recipe=replace(team.method.recipe, codec=ChatCodec(tokenizer)))
    twice = [Message("user", "a"), Message("user", "b")]
    with pytest.raises(ConfigError, match=r"question 2 of 2: the model's chat template refuses .*alternate"):
        team.ask_all(["fine", twice])
    with pytest.raises(ConfigError, match=r"^the model's chat template refuses"):
        team.ask(twice)


def test_a_question_that_is_none_is_named_by_its_number():
    with pytest.raises(DataError, match=r"question 2 of 3: 5 .int. was asked"):
        samples_of(["a", 5, "b"])
