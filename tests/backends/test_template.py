"""Chat templates in the styles of many models: what they want, what they show, the day they print, how a turn ends."""

import datetime
from copy import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.load import describe_model, load_config, load_stop_tokens
from latentmas.backends.hf.template import ChatTemplate, turn_end_tokens
from latentmas.errors import ConfigError
from latentmas.protocols import Message

DAY, OTHER_DAY = datetime.date(2026, 11, 28), datetime.date(2027, 1, 9)
CHAT = [Message("system", "Be brief."), Message("user", "Why?")]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
HARMONY = (
    "{% macro facts() %}Current date: {{ strftime_now('%Y-%m-%d') }}{% endmacro %}"
    "<|start|>system<|message|>{{ facts() }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")


@pytest.fixture
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


def with_template(tokenizer, template, tokens=(), **named):
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens), **named})
    tokenizer.chat_template = template
    return tokenizer


def ends(tokenizer):
    return {tokenizer.convert_ids_to_tokens(number) for number in turn_end_tokens(tokenizer)}


def both(user, assistant, *, first=""):
    """Return a template from what frames the two roles; a system message is a user's."""
    return (
        f"{first}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}{{% endif %}}"
        "{% endfor %}"
    )


@pytest.mark.parametrize(
    ("template", "tokens", "end"),
    [
        (CHATML, [], "<|im_end|>"),
        (CHATML.replace("<|im_end|>", "<|eot_id|>"), ["<|eot_id|>"], "<|eot_id|>"),
        (NO_SYSTEM + both("{{ m.content | trim }}</t>\n", "{{ m.content | trim }}</t>\n"), ["</t>"], "</t>"),
        (both("[INST] {{ m.content }} [/INST]", " {{ m.content }} {{ eos_token }}"), [], "<|im_end|>"),
        (both("<|u|>\n{{ m.content }}<|end|>\n", "<|a|>\n{{ m.content }}<|end|>\n"), ["<|u|>", "<|end|>"], "<|end|>"),
        (both("<|u|>{{ m.content }}", "<|a|>{{ m.content }}"), ["<|u|>", "<|a|>"], "<|u|>"),
        (
            both("<S>User\n{{ m.content }}\n", "<S>Assistant\n{{ m.content }}\n")
            + "{% if add_generation_prompt %}<S>Assistant\n{% endif %}",
            ["<S>"],
            "<S>",
        ),
        (
            both("{{ m.content }}", "{{ m.content }}{% if not loop.last %}<|e|>{% endif %}"),
            ["<|e|>"],
            "<|e|>",
        ),
        (
            both("{{ m.content }}", "<|inner_prefix|><|inner_suffix|>{{ m.content }}<|inner_suffix|>\n<|e|>"),
            ["<|inner_prefix|>", "<|inner_suffix|>", "<|e|>"],
            "<|e|>",
        ),
        (both("{{ m.content }}", "<think></think>{{ m.content.split('</think>')[-1] }}<|e|>"), ["<|e|>"], "<|e|>"),
        (CHATML + "{{ eos_token }}", [], "<|im_end|>"),
        (PARTS, [], "<|im_end|>"),
        (
            both("[I]{% for part in m.content %}{{ part['text'] }}{% endfor %}[/I]", "{{ m.content + '</s>' }}"),
            ["[I]", "[/I]", "</s>"],
            "</s>",
        ),
        (HARMONY, HARMONY_TOKENS, "<|return|>"),
    ],
)  # fmt: skip
def test_the_token_that_ends_a_turn_is_seen(tokenizer, template, tokens, end):
    assert ends(with_template(tokenizer, template, tokens)) == {end}


@pytest.mark.parametrize(
    "template",
    [
        both("USER: {{ m.content }}\n", "ASSISTANT: {{ m.content }}\n"),
        both("{{ m.content }}", "{{ raise_exception('nobody has answered yet') }}"),
        both("{{ m.content }}", "an answer<|im_end|>"),
        both("{{ m.content }}", "{{ m.content }} over<|im_end|>") + "over",
        "{{ raise_exception('not today') }}",
        None,
    ],
    ids=["text", "refused", "lost", "text before the token", "unusable", "no template"],
)
def test_a_template_that_shows_no_end_gives_none(tokenizer, template):
    assert ends(with_template(tokenizer, template)) == set()


def test_blanks_and_marks_of_thinking_never_end_a_turn(tokenizer):
    template = both("{{ m.content }}", "{{ m.content }}\n\n</think>")
    tokenizer.add_tokens(["\n\n", "\n"])
    assert ends(with_template(tokenizer, template, ["</think>"])) == set()


def test_the_end_of_a_message_in_a_channel_does_not_end_the_turn(tokenizer):
    always = HARMONY.replace("<|return|>", "<|end|>")
    assert ends(with_template(tokenizer, always, HARMONY_TOKENS)) == set()


MESSAGES = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.reasoning_content %}<|begin|>assistant<|think|>"
    "{{ m.reasoning_content }}<|end|>{% endif %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "tokens"),
    [
        (MESSAGES + "{% if add_generation_prompt %}<|begin|>assistant{% endif %}", ["<|begin|>", "<|end|>"]),
        (both("<S>User\n{{ m.content }}\n", "<S>Assistant\n{{ m.content }}\n"), ["<S>"]),
    ],
    ids=["after a thought", "before the words, which the template leaves to the model"],
)
def test_what_a_model_writes_on_its_way_to_its_words_does_not_end_its_turn(tokenizer, template, tokens):
    assert ends(with_template(tokenizer, template, tokens)) == set()


def test_an_added_token_that_is_not_special_ends_a_turn(tokenizer):
    tokenizer.add_tokens(["<end_of_turn>"])
    assert ends(with_template(tokenizer, CHATML.replace("<|im_end|>", "<end_of_turn>"))) == {"<end_of_turn>"}


def test_what_ends_a_turn_stops_writing_on_both_backends(tiny, tokenizer, model_folder):
    from latentmas.backends.hf.load import LoadOptions

    with_template(tokenizer, CHATML.replace("<|im_end|>", "<|e|>"), ["<|e|>"])
    [end] = turn_end_tokens(tokenizer)
    options = LoadOptions(model_name=str(model_folder))
    assert end in describe_model(tiny.causal("qwen3"), tokenizer).stop_tokens
    assert end in load_stop_tokens(options, load_config(options), tokenizer)


def test_a_tokenizer_without_end_of_text_still_has_the_end_of_a_turn(tiny, tokenizer):
    tokenizer.eos_token = None
    assert describe_model(tiny.causal("qwen3"), tokenizer).stop_tokens >= turn_end_tokens(tokenizer) != frozenset()


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (PARTS, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"),
        (
            both("{% for part in m.content %}{{ part['text'] if part is mapping else part }}\n{% endfor %}", ""),
            "Be brief.\nWhy?\n",
        ),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n' }}{% else %}"
            "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}{% endif %}"
            "{% endfor %}",
            "Be brief.\nWhy?",
        ),
        (NO_SYSTEM + PARTS, "<|im_start|>user\nBe brief.\n\nWhy?<|im_end|>\n"),
        (CHATML.replace("m.content", "m.content if m.content is string else '-'"), None),
        (CHATML, None),
    ],
    ids=["parts", "letters one by one", "system as text", "no system role", "either", "text"],
)
def test_a_template_gets_content_in_the_form_it_shows(tokenizer, template, shown):
    text = ChatCodec(with_template(tokenizer, template)).encode_chat(CHAT).text
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert text == (shown or expected)


def test_a_list_that_is_printed_as_it_is_shows_nobody(tokenizer):
    template = "{% for m in messages if m.content is not string %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="leaves out what the user says"):
        ChatCodec(with_template(tokenizer, template)).encode_chat(CHAT)


def dated(template):
    return "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n" + template


def test_a_template_prints_the_day_it_is_told(tokenizer):
    with_template(tokenizer, dated(CHATML))
    lines = [ChatCodec(tokenizer, date=day).encode_chat(CHAT).text.splitlines()[1] for day in (DAY, OTHER_DAY)]
    assert lines == ["Today is 28 Nov 2026.<|im_end|>", "Today is 09 Jan 2027.<|im_end|>"]


def test_the_day_reaches_a_macro_of_the_template(tokenizer):
    with_template(tokenizer, HARMONY, HARMONY_TOKENS)
    assert "Current date: 2026-11-28<|end|>" in ChatCodec(tokenizer, date=DAY).encode_chat(CHAT).text


def test_a_day_of_its_own_that_a_template_falls_back_to_stays(tokenizer):
    template = "{% if not day is defined %}{% set day = '26 Jul 2024' %}{% endif %}{{ day }}" + CHATML
    codec = ChatCodec(with_template(tokenizer, template), date=DAY)
    assert codec.encode_chat(CHAT).text.startswith("26 Jul 2024")
    assert codec.printed_date is None


TEXTS = st.text(st.characters(blacklist_characters="%\0", blacklist_categories=["Cs"]), max_size=4)
PIECES = st.one_of(TEXTS, st.sampled_from([f"%{letter}" for letter in "aAbBcdDeFgGhHIjmMpRSTuUVwWxXyYzZf%"]))


@given(st.lists(st.one_of(PIECES, st.sampled_from(["%-d", "%-m", "%-H"]))).map("".join), st.dates())
def test_a_day_is_written_in_any_format_as_python_writes_it(tiny, form, day):
    tokenizer = copy(tiny.tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}|{{ strftime_now(messages[0].content) }}"
    midnight = datetime.datetime.combine(day, datetime.time())
    assert ChatTemplate(tokenizer, date=day).render([Message("user", form)]) == f"{form}|{midnight.strftime(form)}"


@pytest.mark.parametrize(
    "template", ["\n  {% if true %}x{% endif %}\n" + CHATML, "  {% set a = 1 %}\n\n" + CHATML, "\n\n" + CHATML]
)
def test_telling_the_day_changes_nothing_else(tokenizer, template):
    plain = ChatCodec(with_template(tokenizer, template), date=DAY).encode_chat(CHAT).text
    tokenizer.chat_template = template + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    assert ChatCodec(tokenizer, date=DAY).encode_chat(CHAT).text == plain


@pytest.mark.parametrize(
    ("template", "prints"),
    [
        (CHATML, False),
        (dated(CHATML), True),
        (HARMONY, True),
        (CHATML + "{% if tools %}{{ strftime_now('%d') }}{% endif %}", False),
        ("{% if messages[0].role != 'system' %}{{ strftime_now('%B') }}{% endif %}" + CHATML, True),
        ({"default": dated(CHATML), "tool_use": CHATML}, True),
        (None, False),
    ],
    ids=["none", "always", "macro", "for tools", "without a system message", "named", "no template"],
)
def test_a_codec_names_its_day_where_chats_show_it(tokenizer, template, prints):
    with_template(tokenizer, template)
    codecs = [ChatCodec(tokenizer, date=day) for day in (DAY, OTHER_DAY)]
    assert [codec.printed_date for codec in codecs] == ([DAY, OTHER_DAY] if prints else [None, None])
    assert (codecs[0].digest == codecs[1].digest) is not prints


def test_a_codec_that_is_not_told_stays_on_the_day_it_was_made(tokenizer):
    codec = ChatCodec(with_template(tokenizer, dated(CHATML)))
    assert codec.printed_date == codec.date
    assert abs(codec.date - datetime.date.today()) <= datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (CHATML + "{{ eos_token }}", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        (both("{{ m.content }}{{ eos_token }}", "A: {{ m.content }}{{ eos_token }}"), "Why?<|im_end|>A:"),
        (both("{{ m.content }}", "{{ raise_exception('no') }}") + "{{ eos_token }}", "Why?"),
        (both("{{ m.content }}{{ eos_token }}", "{{ m.content }}{{ eos_token }}"), "Why?<|im_end|>"),
    ],
    ids=["behind the reply's beginning", "no beginning of the reply", "no replies", "between all messages"],
)
def test_no_chat_ends_with_an_end_of_text_that_replies_do_not_follow(tokenizer, template, shown):
    encoded = ChatCodec(with_template(tokenizer, template)).encode_chat(CHAT[1:])
    assert encoded.text == shown
    assert encoded.tokens == ChatCodec(tokenizer).encode_text(shown)


def test_a_token_that_a_tokenizer_has_not_is_printed_as_nothing(tokenizer):
    tokenizer.bos_token = None
    assert (
        ChatCodec(with_template(tokenizer, "{{ bos_token + 'x' }}" + CHATML)).encode_chat(CHAT).text.startswith("x<|im")
    )


def test_a_model_with_several_templates_uses_the_default_one(tokenizer):
    with_template(tokenizer, {"default": CHATML, "tool_use": "{{ raise_exception('tools') }}"})
    assert ChatCodec(tokenizer).encode_chat(CHAT).text.startswith("<|im_start|>system\nBe brief.")
    assert ends(tokenizer) == {"<|im_end|>"}


def test_several_templates_without_a_default_are_refused_by_name(tokenizer):
    with pytest.raises(ConfigError, match="rag"):
        ChatCodec(with_template(tokenizer, {"rag": CHATML, "tool_use": CHATML})).encode_chat(CHAT)
