"""Chats to tokens and back, with any chat template, a template without a system role, or none at all."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from latentmas.backends.hf.template import ChatTemplate, Thinking
from latentmas.errors import ConfigError
from latentmas.protocols import Encoded
from latentmas.samples import THINK_TAG, Message
from latentmas.thinking import KEPT, opens_thought


@dataclass(frozen=True, slots=True)
class ChatCodec:
    """Renders chats with the tokenizer's own template.

    Attributes:
        tokenizer: A transformers tokenizer.
        enable_thinking: Given to the template; None leaves the template its own default.
        date: The day that a template prints which asks for today's; one for all chats.

    Raises:
        ConfigError: The tokenizer is one without chat templates.
    """

    tokenizer: Any
    enable_thinking: bool | None = None
    date: datetime.date = field(default_factory=datetime.date.today)
    _template: ChatTemplate = field(init=False, repr=False, compare=False)
    _special: dict[int, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        template = ChatTemplate(self.tokenizer, date=self.date, enable_thinking=self.enable_thinking)
        object.__setattr__(self, "_template", template)
        # Read once: some tokenizers have thousands.
        object.__setattr__(self, "_special", _special_tokens(self.tokenizer))

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over everything that decides how text becomes tokens and back.

        Raises:
            ConfigError: The chat template cannot be used at all.
        """
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        parts = [
            backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items())),
            repr(tokenizer.chat_template),
            repr(sorted(tokenizer.special_tokens_map.items())),
        ]
        parts += [f"keeps {mark}" for mark in self.kept.values()]
        if (date := self.printed_date) is not None:
            parts.append(f"prints {date}")
        # Where these make no difference, a run that an older version began can go on.
        if self._leaves_out_end():
            parts.append("leaves out the end of text behind a prompt")
        if getattr(tokenizer, "clean_up_tokenization_spaces", False):
            parts.append("keeps blanks")
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    @property
    def printed_date(self) -> datetime.date | None:
        """The day that chats show; None where they show none."""
        return self.date if self.tokenizer.chat_template and self._template.prints_date() else None

    @property
    def has_template(self) -> bool:
        """Whether chats are shown as the model was taught; without a template they are plain text."""
        return bool(self.tokenizer.chat_template)

    def thinking(self) -> Thinking:
        """What chats show of whether thinking is enabled.

        Raises:
            ConfigError: The chat template cannot be used at all.
        """
        return self._template.thinking() if self.has_template else Thinking(matters=False, unless_told=None)

    @property
    def kept(self) -> dict[int, str]:
        """The special tokens that stay in a text, by their id: they mark where thinking begins and ends."""
        return {number: text for number, text in self._special.items() if text in KEPT}

    def encode_chat(self, messages: Sequence[Message], *, think: bool = False) -> Encoded:
        """Render a chat that ends where the reply begins.

        A system message is put before the first user message where the template has no system role.

        Args:
            think: Start the reply with ``<think>``, unless the template already did.

        Raises:
            ConfigError: The template refuses the chat, or leaves out what the user says.
        """
        if not self.tokenizer.chat_template:
            text = _opened(_plain(messages), think)
            return Encoded(text, self._encode_first(text))
        text = _opened(self._template.render(messages), think)
        return Encoded(text, self.encode_text(text))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, tokens: Sequence[int], *, marks: bool = True) -> str:
        kept = self.kept if marks else {}
        skips = kept.keys().isdisjoint(tokens)
        left = [token for token in tokens if skips or token in kept or token not in self._special]
        # Cleaning up is for people: in code it would make ' out of ' ' between two spaces.
        return str(self.tokenizer.decode(left, skip_special_tokens=skips, clean_up_tokenization_spaces=False))

    def _encode_first(self, text: str) -> tuple[int, ...]:
        """Return tokens with the special ones that the model expects first, and none after the text.

        A tokenizer made for training may put an end of text there.
        """
        whole = tuple(self.tokenizer(text).input_ids)
        added = self._special_at_end(whole) - self._special_at_end(self.encode_text(text))
        return whole[: len(whole) - added]

    def _leaves_out_end(self) -> bool:
        """Tell whether prompts are shorter than the tokenizer or its template would have them."""
        if self.tokenizer.chat_template:
            return self._template.leaves_out_end()
        text = _plain([Message("user", "a")])
        return len(self._encode_first(text)) < len(self.tokenizer(text).input_ids)

    def _special_at_end(self, tokens: Sequence[int]) -> int:
        """Return how many special tokens come last."""
        return next((n for n, token in enumerate(reversed(tokens)) if token not in self._special), len(tokens))


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the text of every token that is no part of a text, by its id.

    Raises:
        ConfigError: The tokenizer does not say; it has no chat template either, so its prompts would be wrong.
    """
    known = tokenizer.added_tokens_decoder
    if not isinstance(known, dict):
        raise ConfigError(
            f"{type(tokenizer).__name__} has no chat templates; uninstall mistral-common, or take tekken.json out of "
            "the model's folder, so that transformers reads tokenizer.json"
        )
    added = {number: str(token) for number, token in known.items() if token.special}
    return {**added, **dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))}


def _opened(text: str, think: bool) -> str:
    return f"{text}{THINK_TAG}" if think and not opens_thought(text) else text


def _plain(messages: Sequence[Message]) -> str:
    """A chat for models that were never taught one."""
    turns = []
    for message in messages:
        match message.role:
            case "system":
                turns.append(message.content)
            case "assistant":  # behind "Answer:" a model writes the blank itself
                turns.append(f"Answer:{'' if message.content[:1].isspace() else ' '}{message.content}")
            case _:
                turns.append(f"Question: {message.content}")
    return "\n\n".join([*turns, "Answer:"])
