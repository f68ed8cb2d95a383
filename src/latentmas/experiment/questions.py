"""What a team is asked: a question, or a dialogue whose last message is the question, becomes a sample."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from latentmas.errors import ConfigError, DataError, shown
from latentmas.samples import Message, Sample

Asked = str | Sequence[Message | Mapping[str, object]]
"""A question, or the messages of a dialogue: `Message`, or mappings with ``role`` and ``content``."""

_ROLES: Final = ("system", "user", "assistant")
_KEYS: Final = frozenset({"role", "content"})


def samples_of(questions: Iterable[Asked], system: str | None = None) -> list[Sample]:
    """Return one sample per question. What is asked names it, so that nothing sampled depends on what else is asked.

    Args:
        system: Stands in place of the prompt set's system message; not for a dialogue that has one.

    Raises:
        DataError: Something is no question; says which and why.
    """
    if isinstance(questions, str | bytes | Mapping) or not isinstance(questions, Iterable):
        raise DataError(f"ask_all was given {shown(questions)}; expected a list of questions, ask takes a single one")
    asked = list(questions)
    if asked and all(_is_message(item) for item in asked):
        raise DataError("ask_all was given the messages of one dialogue; expected a list of questions, ask takes one")
    seen: Counter[str] = Counter()
    samples = []
    for number, question in enumerate(asked, start=1):
        try:
            sample = sample_of(question, system)
        except DataError as error:
            raise DataError(f"question {number} of {len(asked)}: {error}") from error
        samples.append(replace(sample, id=f"{sample.id}-{seen[sample.id]}"))
        seen[sample.id] += 1
    return samples


def sample_of(asked: object, system: str | None = None) -> Sample:
    """Return what is asked as a sample, whose id says what it is.

    Raises:
        DataError: It is no question.
        ConfigError: The system message is no text.
    """
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"system is {shown(system)}; expected the text of a system message, or None")
    messages = [Message("user", asked)] if isinstance(asked, str) else _messages(asked)
    if system is not None:
        if messages[0].role == "system":
            raise DataError("the dialogue has a system message, and system= is another one; give one of them")
        messages.insert(0, Message("system", system))
    for message in messages:
        _check_text(message)
    *before, last = messages
    if not last.content.strip():
        raise DataError(f"the question is {last.content!r}; expected a text")
    is_plain = isinstance(asked, str) and not before
    told = last.content if is_plain else json.dumps([[message.role, message.content] for message in messages])
    return Sample(
        id=hashlib.sha256(told.encode()).hexdigest()[:16],
        question=last.content,
        target="",
        before=tuple(before),
        verbatim=not isinstance(asked, str),
    )


def _messages(asked: object) -> list[Message]:
    """Return the messages of a dialogue.

    Raises:
        DataError: It is none: something is no message, or roles are not in an order in which people talk.
    """
    if isinstance(asked, bytes | Mapping | Message) or not isinstance(asked, Sequence):
        raise DataError(f"{shown(asked)} was asked; expected a text, or a list of messages that ends with the user's")
    if not asked:
        raise DataError("a dialogue without messages was asked; expected a list that ends with a message of the user")
    messages = [_message(number, item) for number, item in enumerate(asked, start=1)]
    for number, message in enumerate(messages, start=1):
        if message.role == "system" and number > 1:
            raise DataError(f"message {number} is a system message; only the first one may be")
    if messages[-1].role != "user":
        raise DataError(
            f"the last of {len(messages)} messages is of role {messages[-1].role!r}; expected 'user', whose message is "
            "the question"
        )
    return messages


def _message(number: int, item: object) -> Message:
    if isinstance(item, Message):
        role, content = item.role, item.content
    elif isinstance(item, Mapping):
        if missing := sorted(_KEYS - item.keys()):
            raise DataError(f"message {number} has no {missing[0]!r}; expected {{'role': ..., 'content': ...}}")
        # Clients of servers put fields there that stand at None.
        if more := sorted(str(key) for key, value in item.items() if key not in _KEYS and value is not None):
            raise DataError(f"message {number} has {more[0]!r}, which no agent would read; leave it out")
        role, content = item["role"], item["content"]
    else:
        raise DataError(f"message {number} is {shown(item)}; expected {{'role': ..., 'content': ...}} or a Message")
    if role not in _ROLES:
        hint = "; a developer's message is a system message here" if role == "developer" else ""
        raise DataError(f"message {number} is of role {role!r}; expected one of {', '.join(_ROLES)}{hint}")
    return Message(str(role), _text(number, content))


def _text(number: int, content: object) -> str:
    """Return the content of a message, which may come as a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise DataError(
            f"the content of message {number} is {shown(content)}; expected a text, or a list of text parts"
        )
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise DataError(
                f"message {number} has the part {shown(part)}; agents read text only: {{'type': 'text', 'text': ...}}"
            )
        texts.append(text)
    return "".join(texts)


def _check_text(message: Message) -> None:
    try:
        message.content.encode()
    except UnicodeEncodeError as error:
        half = message.content[error.start]
        raise DataError(
            f"the {message.role}'s text has {half!r} at character {error.start}, which is half a character; "
            "read the text it comes from as UTF-8"
        ) from error


def _is_message(item: object) -> bool:
    return isinstance(item, Message) or (isinstance(item, Mapping) and "role" in item)
