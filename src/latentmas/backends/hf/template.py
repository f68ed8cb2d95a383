"""A tokenizer's chat template: what it wants, what it shows, the day it prints, and how it ends a turn.

A template is a program of strangers, so nothing is taken for granted that was not seen in what it renders.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, final

from latentmas.errors import ConfigError
from latentmas.samples import Message
from latentmas.thinking import MARKS

# With a space in them: a template that takes text for a list of parts may show its letters one by one.
_SYSTEM: Final = "8c1f-system probe"
_USER: Final = "8c1f-user probe"
_REPLY: Final = "8c1f-reply probe"
_THOUGHT: Final = "8c1f-thought probe"

_PRINTS_TODAY: Final = "strftime_now"
_DIRECTIVES: Final = "aAbBcdDeFgGhHIjmMpRSTuUVwWxXyYfzZ"
# transformers hands a template plain data only, so the function is replaced in the template's own language. The line
# break is there for `trim_blocks` to take away: the template itself begins on a line of its own.
_FIXED_DAY: Final = (
    "{% macro strftime_now(format) %}{% set shown = namespace(text=format) %}"
    "{% for directive, value in latentmas_day %}{% set shown.text = shown.text.replace(directive, value) %}{% endfor %}"
    "{{ shown.text }}{% endmacro %}\n"
)
_SOME_DAYS: Final = (datetime.date(1987, 2, 3), datetime.date(2032, 11, 28))
"""Two days that no format shows alike."""
_LIST: Final = re.compile(r"""['"]text['"]: ['"]""")
"""A list of parts that is printed as it is."""
_MARKS: Final = frozenset(mark for marks in MARKS for mark in (marks.opens, marks.closes))
_CHANNEL: Final = "<|channel|>"
_MESSAGE_END: Final = "<|end|>"
_OPTIONAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


class Form(Enum):
    """How a template wants what somebody says."""

    TEXT = auto()
    PARTS = auto()
    """As a list of parts, each of a type; templates of models that also see pictures do."""


@dataclass(frozen=True, slots=True)
class _Forms:
    """How a template wants messages.

    Attributes:
        system: None where it has no system role: such templates raise, or drop the message without a word.
        assistant: None where it leaves out what the assistant said.
    """

    user: Form
    system: Form | None
    assistant: Form | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """What chats show of whether thinking is enabled.

    Attributes:
        matters: They differ by it.
        unless_told: Which of the two they show where nothing is said; None where that is neither.
    """

    matters: bool
    unless_told: bool | None


@final
class ChatTemplate:
    """The template of a tokenizer, on one day.

    Args:
        tokenizer: A transformers tokenizer that has a chat template.
        date: The day that a template prints which asks for today's.
        enable_thinking: Given to the template; None leaves the template its own default.
    """

    def __init__(self, tokenizer: Any, *, date: datetime.date, enable_thinking: bool | None = None) -> None:
        self._tokenizer = tokenizer
        self._date = date
        self._enable_thinking = enable_thinking
        self._forms: dict[str, _Forms] = {}

    def render(self, messages: Sequence[Message]) -> str:
        """Return a chat up to where the reply begins.

        A system message is put before the first user message where the template has no system role.

        Raises:
            ConfigError: The template refuses the chat, or leaves out what the user or the assistant says.
        """
        if self._seen().system is None:
            messages = _without_system(messages)
        if self._seen().assistant is None and any(message.role == "assistant" for message in messages):
            self._show(messages)  # says why, where it raises
            raise ConfigError("the model's chat template leaves out what the assistant said; repair its chat_template")
        text = self._show(messages)
        end = self._tokenizer.eos_token
        return self._without_end(text, end, messages) if end and text.endswith(end) else text

    def prints_date(self) -> bool:
        """Whether a chat with or without a system message shows which day it is.

        Raises:
            ConfigError: The template cannot be used at all.
        """
        if _PRINTS_TODAY not in repr(self._tokenizer.chat_template):
            return False
        user = Message("user", _USER)
        chats = ((user,), (Message("system", _SYSTEM), user))
        return any(len({self._on(day).render(chat) for day in _SOME_DAYS}) > 1 for chat in chats)

    def thinking(self) -> Thinking:
        """What the template shows of whether thinking is enabled.

        Raises:
            ConfigError: The template cannot be used at all.
        """
        user = Message("user", _USER)
        chats = ((user,), (Message("system", _SYSTEM), user))

        def shown(enabled: bool | None) -> list[str]:
            template = ChatTemplate(self._tokenizer, date=self._date, enable_thinking=enabled)
            return [template.render(chat) for chat in chats]

        on, off, untold = shown(True), shown(False), shown(None)
        return Thinking(matters=on != off, unless_told=True if on == untold else False if off == untold else None)

    def leaves_out_end(self) -> bool:
        """Whether the template puts an end of text behind the place where the reply begins, which is left out.

        Raises:
            ConfigError: The template cannot be used at all.
        """
        chat = (Message("user", _USER),)
        return self.render(chat) != self._show(chat)

    def turn_ends(self) -> frozenset[str]:
        """Return the tokens that stand where the model's own words end: in the last turn, and before another one.

        Ordinary text is none, and neither is a mark of thinking, nor what the model writes on its way to these words:
        a turn may consist of several messages, each with an end of its own.
        """
        question = Message("user", _USER)
        ends = set()
        for after in ((), (question,)):
            shown = self._around_reply((question,), after)
            if shown is None or (end := _first_token(shown[1], self._tokenizer)) is None:
                continue
            if not (end == _MESSAGE_END and _CHANNEL in shown[0]):
                ends.add(end)
        on_the_way = self._on_the_way(question) if ends else ""
        return frozenset(end for end in ends if end not in on_the_way)

    def _on_the_way(self, question: Message) -> str:
        """Return what the model writes between a question and its own words, as far as the template shows it."""
        prompt, shown = self.render((question,)), self._around_reply((question,))
        written = [] if shown is None or not shown[0].startswith(prompt) else [shown[0].removeprefix(prompt)]
        thoughtful = self._around_reply((question,), thought=_THOUGHT)
        if thoughtful is not None and _THOUGHT in thoughtful[0]:
            written.append(thoughtful[0].rpartition(_THOUGHT)[2])
        return "\0".join(written)

    def _on(self, date: datetime.date) -> ChatTemplate:
        return ChatTemplate(self._tokenizer, date=date, enable_thinking=self._enable_thinking)

    def _around_reply(
        self, before: Sequence[Message], after: Sequence[Message] = (), *, thought: str | None = None
    ) -> tuple[str, str] | None:
        """Return what stands before and after the model's own words; None where the template does not show them.

        Args:
            thought: What the model thought before, for templates that show it.
        """
        chat = [*before, Message("assistant", _REPLY), *after]
        for form in Form:
            text = self._tried(chat, {"assistant": form}, reply_follows=False, thought=thought)
            if text is not None and text.count(_REPLY) == 1:
                first, _, rest = text.partition(_REPLY)
                return first, rest
        return None

    def _without_end(self, text: str, end: str, messages: Sequence[Message]) -> str:
        """Return a chat without the end of text behind the place where the reply begins.

        Not everything there is one too many: it may close what the user says, and then the reply follows it, or the
        beginning of the reply's turn does.
        """
        shown = self._around_reply(messages)
        if shown is None or not shown[0].startswith(text):
            return text.removesuffix(end)
        before = shown[0]
        return before.rstrip(" ") if before[len(text) :].strip() else text

    def _seen(self) -> _Forms:
        """Return how the template wants messages.

        Raises:
            ConfigError: It does not even show what the user says.
        """
        source = repr(self._tokenizer.chat_template)
        if source not in self._forms:
            user = Message("user", _USER)
            of_user = self._form_of("user", [user], {})
            if of_user is None:
                self._show([user], {"user": Form.TEXT})  # says why, where it raises
                raise ConfigError("the model's chat template leaves out what the user says; repair its chat_template")
            of_system = self._form_of("system", [Message("system", _SYSTEM), user], {"user": of_user})
            reply = Message("assistant", _REPLY)
            of_assistant = self._form_of("assistant", [user, reply, user], {"user": of_user})
            self._forms[source] = _Forms(user=of_user, system=of_system, assistant=of_assistant)
        return self._forms[source]

    def _form_of(self, role: str, chat: Sequence[Message], known: dict[str, Form]) -> Form | None:
        """Return the form in which the template shows all messages of a chat; None where it does in neither."""
        for form in Form:
            text = self._tried(chat, {**known, role: form})
            if text is None or not all(message.content in text for message in chat):
                continue
            if form is Form.TEXT or not _LIST.search(text):
                return form
        return None

    def _tried(
        self,
        chat: Sequence[Message],
        forms: dict[str, Form] | None = None,
        *,
        reply_follows: bool = True,
        thought: str | None = None,
    ) -> str | None:
        """Return the chat as the template shows it; None where it refuses."""
        try:
            return self._show(chat, forms, reply_follows=reply_follows, thought=thought)
        except ConfigError:
            return None

    def _show(
        self,
        messages: Sequence[Message],
        forms: dict[str, Form] | None = None,
        *,
        reply_follows: bool = True,
        thought: str | None = None,
    ) -> str:
        """Return the chat as the template shows it.

        Args:
            forms: By role; other roles have the form of their own that was seen.
            thought: Of the model before it said what the chat has of it.
        """
        known = forms or {}
        if missing := {message.role for message in messages} - known.keys():
            seen = self._seen()
            own = {
                "user": seen.user,
                "system": seen.system or seen.user,
                "assistant": seen.assistant or seen.user,
            }
            known = {**{role: own[role] for role in missing}, **known}
        chat = [_entry(message, known[message.role], thought) for message in messages]
        # A tokenizer without one of these tokens has nothing to print for it.
        options: dict[str, Any] = {
            name: "" for name in _OPTIONAL_TOKENS if getattr(self._tokenizer, name, None) is None
        }
        if self._enable_thinking is not None:
            options["enable_thinking"] = self._enable_thinking
        try:
            source = self._tokenizer.get_chat_template()
            if _PRINTS_TODAY in source:
                options |= {"chat_template": _FIXED_DAY + source, "latentmas_day": _directives(self._date)}
            return str(
                self._tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=reply_follows, **options
                )
            )
        except Exception as error:  # a template is a program that came with the model
            raise ConfigError(f"the model's chat template refuses this chat: {error}") from error


def turn_end_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the ids with which a tokenizer's chat template ends the model's own turns; none without a template."""
    if tokenizer is None or not tokenizer.chat_template:
        return frozenset()
    # The day decides nothing here.
    try:
        ends = ChatTemplate(tokenizer, date=_SOME_DAYS[0]).turn_ends()
    except ConfigError:  # a template that cannot be used at all is refused where a chat is rendered
        return frozenset()
    return frozenset(int(tokenizer.convert_tokens_to_ids(end)) for end in ends)


def _first_token(text: str, tokenizer: Any) -> str | None:
    """Return the token with which a text begins that is more than a piece of text, blanks and marks aside."""
    text = text.lstrip()
    while mark := max((mark for mark in _MARKS if text.startswith(mark)), key=len, default=""):
        text = text.removeprefix(mark).lstrip()
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return max((token for token in tokens if text.startswith(token)), key=len, default=None)


def _entry(message: Message, form: Form, thought: str | None) -> dict[str, object]:
    """Return a message as templates know it."""
    content = message.content if form is Form.TEXT else [{"type": "text", "text": message.content}]
    entry: dict[str, object] = {"role": message.role, "content": content}
    if thought is not None and message.role == "assistant":
        entry |= {"reasoning_content": thought, "thinking": thought}
    return entry


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Put system text before the first user message."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    first = next((place for place, message in enumerate(rest) if message.role == "user"), None)
    if system and first is not None:
        rest[first] = Message("user", f"{system}\n\n{rest[first].content}")
    return rest


def _directives(date: datetime.date) -> list[list[str]]:
    """Return what to put in place of each directive of a date format, in order; the time is midnight."""
    midnight = datetime.datetime.combine(date, datetime.time())
    values = [
        [f"%{flag}{letter}", midnight.strftime(f"%{flag}{letter}")] for flag in ("", "-") for letter in _DIRECTIVES
    ]
    return [["%%", "\0"], *values, ["\0", "%"]]
