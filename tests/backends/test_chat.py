"""Chats become tokens under every kind of template."""

import pytest

from latentmas.backends.hf.chat import ChatCodec
from latentmas.errors import ConfigError
from latentmas.protocols import Message

CHAT = [Message("system", "Be brief."), Message("user", "Why?")]
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


def encoded(tokenizer, template, chat=CHAT, *, think=False, **options):
    tokenizer.chat_template = template
    return ChatCodec(tokenizer, **options).encode_chat(chat, think=think)


def test_a_chat_ends_where_the_reply_begins(tokenizer):
    prompt = encoded(tokenizer, PLAIN)
    assert prompt.text == "[system]Be brief.[user]Why?[assistant]"
    assert tokenizer.decode(prompt.tokens) == prompt.text


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN,
        PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
    ],
    ids=["refuses", "drops"],
)
def test_a_template_without_a_system_role_gets_the_system_text_in_the_first_turn(tokenizer, template):
    assert encoded(tokenizer, template).text == "[user]Be brief.\n\nWhy?[assistant]"


def test_a_model_without_a_template_gets_a_plain_dialogue(tokenizer):
    prompt = encoded(tokenizer, None)
    assert prompt.text == "Be brief.\n\nQuestion: Why?\n\nAnswer:"
    assert len(prompt.tokens) >= len(prompt.text)


def test_special_tokens_of_a_template_are_not_doubled(tokenizer):
    tokenizer.bos_token = "<|endoftext|>"
    prompt = encoded(tokenizer, "{{ bos_token }}" + PLAIN)
    assert list(prompt.tokens).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("option", "shown"), [(None, "unset"), (True, "True"), (False, "False")])
def test_enable_thinking_reaches_the_template_only_when_it_is_said(tokenizer, option, shown):
    template = PLAIN + "{{ enable_thinking if enable_thinking is defined else 'unset' }}"
    assert encoded(tokenizer, template, enable_thinking=option).text.endswith(shown)


def test_think_opens_the_reply_with_the_tag_once(tokenizer):
    prompt = encoded(tokenizer, PLAIN, think=True)
    assert prompt.text.endswith("[assistant]<think>")
    assert tokenizer.decode(prompt.tokens) == prompt.text
    assert encoded(tokenizer, PLAIN + "<think>\n", think=True).text.count("<think>") == 1
    assert encoded(tokenizer, None, think=True).text.endswith("Answer:<think>")


def test_a_template_that_refuses_the_chat_is_an_error_of_one_sentence(tokenizer):
    with pytest.raises(ConfigError, match="not today"):
        encoded(tokenizer, "{{ raise_exception('not today') }}")


def test_written_text_has_no_special_tokens(tokenizer):
    codec = ChatCodec(tokenizer)
    ids = [*codec.encode_text("fine"), tokenizer.eos_token_id]
    assert codec.decode(ids) == "fine"


def test_a_template_that_leaves_out_the_user_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="leaves out what the user says"):
        encoded(tokenizer, "hello")


def test_a_template_that_raises_anything_is_an_error_of_one_sentence(tokenizer):
    with pytest.raises(ConfigError, match="refuses this chat"):
        encoded(tokenizer, "{{ messages[0].content + 1 }}")


def test_the_digest_changes_with_template_and_tokenizer(tokenizer):
    codec = ChatCodec(tokenizer)
    before = codec.digest
    tokenizer.chat_template = PLAIN + " "
    changed = codec.digest
    tokenizer.add_tokens(["hello"])
    assert len({before, changed, codec.digest}) == 3
