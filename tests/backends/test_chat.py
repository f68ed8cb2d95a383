"""Chats become tokens under every kind of template."""

from copy import deepcopy
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

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


@pytest.mark.parametrize("template", [None, PLAIN])
def test_the_digest_says_that_an_end_of_text_is_left_out(tokenizer, monkeypatch, template):
    end = tokenizer.eos_token
    if template is None:
        tokenizer.chat_template = None
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
        )
    else:
        tokenizer.chat_template = template + "{{ eos_token }}"
    before = ChatCodec(tokenizer).digest
    monkeypatch.setattr(ChatCodec, "_leaves_out_end", lambda self: False)
    assert ChatCodec(tokenizer).digest != before


def test_the_digest_says_nothing_of_an_end_of_text_that_is_not_there(tokenizer, monkeypatch):
    tokenizer.chat_template = PLAIN
    before = ChatCodec(tokenizer).digest
    monkeypatch.setattr(ChatCodec, "_leaves_out_end", lambda self: False)
    assert ChatCodec(tokenizer).digest == before


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("opens", "closes"), [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷")]
)
def test_marks_of_thinking_stay_in_a_text_and_other_special_tokens_do_not(tokenizer, opens, closes, special):
    tokenizer.add_tokens([opens, closes], special_tokens=special)
    codec = ChatCodec(tokenizer)
    tokens = codec.encode_text(f"{opens}wörk it out {closes}<|im_start|> 18 €")
    assert codec.decode([*tokens, tokenizer.eos_token_id]) == f"{opens}wörk it out {closes} 18 €"
    assert codec.decode(tokens, marks=False) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_tokenizer_that_can_have_no_chat_template_is_refused():
    class MistralCommonBackend:
        """As the tokenizer of this name that transformers takes where mistral-common is installed."""

        chat_template = None

        def added_tokens_decoder(self):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="uninstall mistral-common"):
        ChatCodec(MistralCommonBackend())


def test_channels_stay_in_a_text(tokenizer):
    tokens = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    text = "<|channel|>analysis<|message|>two and two<|end|><|start|>assistant<|channel|>final<|message|>four<|return|>"
    codec = ChatCodec(tokenizer)
    assert codec.decode(codec.encode_text(text)) == text


@given(st.lists(st.integers(0, 261)))
def test_a_text_is_what_the_tokenizer_makes_of_it_between_marks(marked, tokens):
    codec, marks = ChatCodec(marked), {260: "<think>", 261: "</think>"}
    assert codec.kept == marks
    # A mark ends a character: bytes on both sides of it are none together.
    pieces = [
        "".join(marks[token] for token in group) if mark else marked.decode(list(group), skip_special_tokens=True)
        for mark, group in groupby(tokens, lambda token: token in marks)
    ]
    assert codec.decode(tokens) == "".join(pieces)
    assert codec.decode(tokens, marks=False) == marked.decode(tokens, skip_special_tokens=True)


@pytest.fixture(scope="module")
def marked(tiny):
    tokenizer = deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    return tokenizer


@pytest.mark.parametrize("decoder", ["metaspace", "replaced"])
@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("<think>one two</think>The three.", None),
        ("<think> one two </think> The three.", None),
        ("one<|im_end|> two", "one two"),
    ],
)
def test_blanks_around_a_mark_stay_where_they_were_written(decoder, text, decoded):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzT.", "▁two", "▁three"]
    pieces = Tokenizer(models.Unigram([(letter, -float(n)) for n, letter in enumerate(letters)], unk_id=0))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    replaced = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    pieces.decoder = decoders.Metaspace(prepend_scheme="first") if decoder == "metaspace" else replaced
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    codec = ChatCodec(tokenizer)
    assert codec.decode(codec.encode_text(text)) == (decoded or text)


def test_blanks_that_were_written_are_not_cleaned_up(tokenizer):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.Unigram([("<unk>", 0.0), *((sign, -1.0) for sign in "▁=join'.()x")], unk_id=0))
    words.decoder = decoders.Replace("▁", " ")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", clean_up_tokenization_spaces=True)
    codec = ChatCodec(tokenizer)
    assert codec.decode(codec.encode_text("x▁=▁'▁'.join(x)")) == "x = ' '.join(x)"


def test_the_digest_changes_with_the_marks_that_stay(tokenizer, monkeypatch):
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    digests = {ChatCodec(tokenizer).digest}
    monkeypatch.setattr("latentmas.backends.hf.chat.KEPT", frozenset({"</think>"}))
    assert len(digests | {ChatCodec(tokenizer).digest}) == 2


@pytest.mark.parametrize(
    ("frame", "first"),
    [
        ("<|endoftext|> $A <|im_end|>", ["<|endoftext|>"]),
        ("<|endoftext|> $A", ["<|endoftext|>"]),
        ("$A <|pad|> <|im_end|>", []),
        ("<|im_end|> $A <|im_end|>", ["<|im_end|>"]),
    ],
)
def test_a_prompt_begins_with_the_special_tokens_of_the_model_and_ends_with_none(tokenizer, frame, first):
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = None
    names = ["<|endoftext|>", "<|im_end|>", "<|pad|>"]
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=frame, special_tokens=special)
    codec = ChatCodec(tokenizer)
    encoded = codec.encode_chat(CHAT)
    assert encoded.tokens == (*tokenizer.convert_tokens_to_ids(first), *codec.encode_text(encoded.text))
