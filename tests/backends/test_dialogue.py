"""A session is a dialogue: what an agent read and wrote is one chat, under any template, or it says why not."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest

from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.dialogue import Dialogue
from latentmas.backends.hf.rollout import Rollout
from latentmas.backends.hf.session import Session
from latentmas.errors import ConfigError, ContextLimitError, ProgramError
from latentmas.program import Budget, KeepSpec, Read
from latentmas.protocols import Encoded, Message

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = CHATML.replace("m.content", "m.content[0].text if m.role == 'user' else m.content")
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + CHATML
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
BRACKETS = (
    "{{ '<|endoftext|>' }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>{% else %}"
    "[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
FORGETFUL = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
UNTHINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
SYSTEM_LAST = (
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{% if loop.last and messages[0].role == 'system' "
    "%}{{ messages[0].content }} {% endif %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = "User: {{ messages[0].content }}" + (
    "{% for m in messages[1:] %}\n{{ 'Bot' if m.role == 'assistant' else 'User' }}: {{ m.content }}{% endfor %}\nBot: "
)


@pytest.fixture
def opened(tiny):
    """Return a backend on the tiny model whose tokenizer has a template."""

    def open_with(template):
        tokenizer = deepcopy(tiny.tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
        tokenizer.chat_template = template
        model = tiny.model("qwen3")
        return HFBackend(model, ChatCodec(tokenizer), tiny.alignment(model))

    return open_with


def read_and_written(session):
    """Return all tokens that went into memory, in order."""
    tokens = []
    for step, account in zip(session.program, session.accounts, strict=True):
        tokens += step.tokens if isinstance(step, Read) else account.written
    return tuple(tokens)


def chat(*contents, system=None):
    """Return a chat of alternating messages."""
    turns = [Message(("user", "assistant")[place % 2], content) for place, content in enumerate(contents)]
    return turns if system is None else [Message("system", system), *turns]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize(
    "template",
    [CHATML, PARTS, DEFAULT_SYSTEM, NO_SYSTEM, BRACKETS, TRIMMED, ALTERNATING, FORGETFUL, WORDS, None],
    ids=["chatml", "parts", "default", "no system", "brackets", "trim", "alternate", "forget", "words", "none"],
)
def test_six_turns_are_one_chat_token_by_token(opened, template, system):
    if template == WORDS and system is not None:
        pytest.skip("its first message is the user's")
    if template == ALTERNATING and system is not None:
        pytest.skip("it counts a system message as a turn")
    backend, said = opened(template), []
    session = Session(backend, system=system)
    for question in ("Why?", "And then?", "What else?"):
        session.read("a", question)
        said += [question, session.write("a", 5)]
    lead = " " * (template in (BRACKETS, None))  # a blank before a reply, which models of these templates write
    if not lead and all(text == text.strip() and "\ufffd" not in text for text in said):
        whole = backend.codec.encode_chat(chat(*said[:-1], system=system)).tokens
        assert read_and_written(session) == whole + session.accounts[-1].written
    else:  # memory keeps the bytes that were written; what stands around them is that of the template
        first, second, third = (step.tokens for step in session.program if isinstance(step, Read))
        one, two = (backend.codec.encode_text(f"{lead}{text}") for text in ("one", "two"))
        clean = chat("Why?", "one", "And then?", "two", "What else?", system=system)
        assert first + one + second + two + third == backend.codec.encode_chat(clean).tokens
    assert session.messages("a") == tuple(chat(*said, system=system))
    assert session.memory.real_slots == len(read_and_written(session))


def test_what_a_session_did_is_the_same_in_one_piece(opened):
    backend = opened(CHATML)
    session = Session(backend).read("a", "Why?")
    session.write("a", 4)
    text = session.read("a", "And then?").think("a", 2).write("a", 6)
    [completion] = backend.run([session.program])
    assert completion.text == text


def test_another_agent_reads_a_whole_chat_on_the_memory_of_the_first(opened):
    backend = opened(DEFAULT_SYSTEM)
    session = Session(backend, system="Be brief.").read("a", "Why?").think("a", 2).hand_over("a").read("b", "So?")
    assert session.program.steps[-1].tokens == backend.codec.encode_chat(chat("So?", system="Be brief.")).tokens
    session.write("b", 3)
    session.read("a", "And then?")
    closing = session.program.steps[-1].text
    assert closing == "<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    assert [message.role for message in session.messages("a")] == ["system", "user", "assistant", "user"]
    assert session.messages("a")[2].content == "", "thoughts stand in place of its text"
    assert session.messages("b")[2].role == "assistant"


def test_a_fork_goes_on_with_the_dialogue_of_its_trunk(opened):
    trunk = Session(opened(CHATML)).read("a", "Why?")
    trunk.write("a", 4)
    other = trunk.fork()
    assert other.read("a", "What else?").write("a", 4)
    assert trunk.messages("a") != other.messages("a")
    trunk.read("a", "What else?").write("a", 4)
    assert read_and_written(trunk) == read_and_written(other)


@pytest.mark.parametrize("template", [CHATML, BRACKETS, None])
def test_messages_without_a_reply_stand_in_a_row(opened, template):
    backend = opened(template)
    session = Session(backend).read("a", "One.")
    session.read("a", "Two.").read("a", "Three.")
    in_a_row = [Message("user", text) for text in ("One.", "Two.", "Three.")]
    encoded = backend.codec.encode_chat(in_a_row)
    assert read_and_written(session) == encoded.tokens
    assert [step.text for step in session.program] == [encoded.text]
    assert session.accounts[0].prompt_tokens == session.memory.slots == len(encoded.tokens)
    text = session.write("a", 6)
    [completion] = backend.run([session.program])
    assert completion.text == text
    session.read("a", "Four.").read("a", "Five.")
    said = [*in_a_row, Message("assistant", text), Message("user", "Four."), Message("user", "Five.")]
    assert session.messages("a") == tuple(said)
    if "\ufffd" not in text:
        assert read_and_written(session) == backend.codec.encode_chat(said).tokens


@pytest.mark.parametrize("template", [BRACKETS, None], ids=["brackets", "none"])
def test_an_empty_reply_keeps_what_the_template_puts_before_it_when_messages_follow(opened, template):
    backend = opened(template)
    session = Session(backend)
    session.read("a", "Why?").hand_over("a")
    session.read("a", "And then?").read("a", "What else?")
    assert backend.codec.encode_chat(session.messages("a")).tokens == read_and_written(session)
    text = "".join(step.text for step in session.program if isinstance(step, Read))
    assert backend.codec.encode_chat(session.messages("a")).text == text


def test_two_messages_in_a_row_are_refused_where_the_template_refuses_them_and_the_session_goes_on(opened):
    session = Session(opened(ALTERNATING)).read("a", "One.")
    before = read_and_written(session)
    with pytest.raises(ConfigError, match="roles must alternate"):
        session.read("a", "Two.")
    assert read_and_written(session) == before
    assert session.write("a", 3)


def test_a_second_message_that_does_not_fit_leaves_the_session_as_it_was(opened, monkeypatch):
    session = Session(opened(CHATML)).read("a", "One.")
    twin = session.fork()
    with pytest.raises(ContextLimitError):
        session.read("a", "x" * 2000)

    def interrupted(self, *arguments):
        self.memory.extend(arguments[1], "a", 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(Rollout, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.read("a", "Two.")
    monkeypatch.undo()
    assert read_and_written(session) == read_and_written(twin)
    assert session.accounts == twin.accounts
    assert session.write("a", 6) == twin.write("a", 6)
    assert session.read("a", "Two.").write("a", 6) == twin.read("a", "Two.").write("a", 6)


@pytest.mark.parametrize(
    ("template", "reply", "shown"),
    [
        (FORGETFUL, "<think>4?</think>5", r"has '<think>4\?</think>5' where the model's chat template shows '5'"),
        (UNTHINKING, "5", r"has '<think>\\n\\n</think>\\n\\n5' where the model's chat template shows '5'"),
    ],
)
def test_a_reply_that_the_template_shows_otherwise_is_refused_unless_it_is_to_stay(opened, template, reply, shown):
    codec = opened(template).codec
    first, _ = Dialogue(codec=codec).heard("2 + 3?")
    written = first.wrote(codec.encode_text(reply))
    with pytest.raises(ConfigError, match=shown):
        written.heard("Sure?")
    after, turn = written.heard("Sure?", as_written=True)
    behind = "<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    assert turn.read.text.removesuffix("<think>\n\n</think>\n\n") == behind
    assert after.tokens == first.tokens + codec.encode_text(reply) + turn.read.tokens
    again, _ = after.wrote(codec.encode_text("yes")).heard("Really?", as_written=template == UNTHINKING)
    assert again.messages[-2:] == (Message("assistant", "yes"), Message("user", "Really?"))


CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "<|end|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant"
)


def test_a_frame_that_the_model_writes_itself_is_no_part_of_the_reply(opened):
    codec = opened(CHANNELS).codec
    first, _ = Dialogue(codec=codec).heard("2 + 3?")
    after, _ = first.wrote(codec.encode_text("<|channel|>final<|message|>5")).heard("Sure?")
    assert after.messages == tuple(chat("2 + 3?", "5", "Sure?"))
    assert after.tokens == codec.encode_chat(after.messages).tokens
    thought = first.wrote(codec.encode_text("<|channel|>analysis<|message|>hm<|end|><|start|>assistant"))
    final = thought.wrote(codec.encode_text("<|channel|>final<|message|>5"))
    with pytest.raises(ConfigError, match="as_written=True"):
        final.heard("Sure?")
    _, turn = final.heard("Sure?", as_written=True)
    assert turn.read.text == "<|end|><|start|>user<|message|>Sure?<|end|><|start|>assistant"


def test_a_template_that_rewrites_earlier_turns_is_refused(opened):
    session = Session(opened(SYSTEM_LAST), system="Be brief.").read("a", "Why?")
    session.write("a", 3)
    with pytest.raises(ConfigError, match="leave out system="):
        session.read("a", "How?", as_written=True)
    plain = Session(opened(SYSTEM_LAST)).read("a", "Why?")
    plain.write("a", 3)
    assert plain.read("a", "How?").write("a", 3)


def test_a_template_without_replies_is_refused(opened):
    session = Session(opened("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")).read("a", "b")
    session.write("a", 2)
    with pytest.raises(ConfigError, match="leaves out what the assistant said"):
        session.read("a", "c")


class Merging:
    """A codec of words whose neighbours may be one token: a written text becomes other tokens when it is read."""

    def encode_chat(self, messages, *, think=False):
        text = "".join(f"<{m.role}>{m.content}</{m.role}>" for m in messages) + "<assistant>"
        return Encoded(text, self.encode_text(text))

    def encode_text(self, text):
        words = {
            "<user>": 1,
            "</user>": 2,
            "<assistant>": 3,
            "</assistant>": 4,
            "ab": 5,
            "a": 6,
            "b": 7,
            "8c1f-reply probe": 8,
        }
        tokens = []
        while text:
            word = max((word for word in words if text.startswith(word)), key=len)
            tokens.append(words[word])
            text = text.removeprefix(word)
        return tuple(tokens)

    def decode(self, tokens, *, marks=True):
        return "".join({5: "ab", 6: "a", 7: "b"}[token] for token in tokens)


def test_memory_keeps_what_was_written_where_its_text_becomes_other_tokens():
    first, _ = Dialogue(codec=Merging()).heard("a")
    after, turn = first.wrote((6, 7)).heard("b")
    assert turn.read == Encoded("</assistant><user>b</user><assistant>", (4, 1, 7, 2, 3))
    assert after.tokens == (1, 6, 2, 3, 6, 7, 4, 1, 7, 2, 3)
    assert after.messages == tuple(chat("a", "ab", "b"))


def test_a_filter_that_looks_at_the_receiver_sees_how_its_dialogue_goes_on(opened):
    backend = opened(CHATML)
    half = KeepSpec(name="receiver", budget=Budget(amount=0.5))
    session = Session(backend).read("a", "Why?")
    session.write("a", 4)
    session.hand_over("a", half, to="And then?", reader="a")
    text = session.read("a", "And then?").write("a", 5)
    [completion] = backend.run([session.program])
    assert completion.text == text


@pytest.mark.parametrize(
    "touch",
    [
        lambda session, path: session.fork(),
        lambda session, path: session.save(path / "memory.safetensors"),
        lambda session, path: session.read("a", "more"),
        lambda session, path: session.write("a", 1),
    ],
    ids=["fork", "save", "read", "write"],
)
def test_a_session_that_is_at_work_refuses_another_thread_and_goes_on(opened, touch, tmp_path):
    backend = opened(CHATML)
    alone = Session(backend).read("a", "one").think("a", 2)
    session, refusals = Session(backend).read("a", "one"), []

    def aligned(hidden):
        with ThreadPoolExecutor(1) as other:
            refusals.append(other.submit(touch, session, tmp_path).exception())
        return backend.alignment(hidden)

    session._rollout.alignment = aligned
    session.think("a", 2)
    assert [type(refusal) for refusal in refusals] == [ProgramError] * 2
    assert "another thread is at work" in str(refusals[0])
    assert session.accounts == alone.accounts
    assert not list(tmp_path.iterdir())
    session.fork().think("a", 1)
