"""Chats to tokens and back, with any chat template, a template without a system role, or none at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from latentmas.errors import ConfigError
from latentmas.protocols import Encoded, Message
from latentmas.samples import THINK_TAG


@dataclass(frozen=True, slots=True)
class ChatCodec:
    """Renders chats with the tokenizer's own template.

    Attributes:
        tokenizer: A transformers tokenizer.
        enable_thinking: Given to the template; None leaves the template its own default.
    """

    tokenizer: Any
    enable_thinking: bool | None = None
    _system_role: dict[str, bool] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over everything that decides how text becomes tokens and back."""
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        parts = (
            backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items())),
            repr(tokenizer.chat_template),
            repr(sorted(tokenizer.special_tokens_map.items())),
        )
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def encode_chat(self, messages: Sequence[Message], *, think: bool = False) -> Encoded:
        """Render a chat that ends where the reply begins.

        A system message is put before the first user message where the template has no system role.

        Args:
            think: Start the reply with ``<think>``, unless the template already did.
        """
        if not self.tokenizer.chat_template:
            text = _opened(_plain(messages), think)
            ids = self.tokenizer(text).input_ids  # with the special tokens the model expects first
            return Encoded(text, tuple(ids))
        if not self._takes_system():
            messages = _without_system(messages)
        text = _opened(self._render(messages), think)
        return Encoded(text, self.encode_text(text))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _takes_system(self) -> bool:
        """Whether the template shows a system message; some raise, some drop it without a word.

        Raises:
            ConfigError: It does not even show what the user says.
        """
        if "known" not in self._system_role:
            system, user = "8c1f-system-probe", "8c1f-user-probe"
            if user not in self._render([Message("user", user)]):
                raise ConfigError("the model's chat template leaves out what the user says; repair its chat_template")
            try:
                shown = system in self._render([Message("system", system), Message("user", user)])
            except ConfigError:
                shown = False
            self._system_role["known"] = shown
        return self._system_role["known"]

    def _render(self, messages: Sequence[Message]) -> str:
        options = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options))
        except Exception as error:  # a template is a program that came with the model
            raise ConfigError(f"the model's chat template refuses this chat: {error}") from error


def _opened(text: str, think: bool) -> str:
    return f"{text}{THINK_TAG}" if think and not text.rstrip().endswith(THINK_TAG) else text


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Put system text before the first user message."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if system and rest:
        rest[0] = Message(rest[0].role, f"{system}\n\n{rest[0].content}")
    return rest


def _plain(messages: Sequence[Message]) -> str:
    """A chat for models that were never taught one."""
    names = {"user": "Question", "assistant": "Answer"}
    turns = [
        message.content if message.role == "system" else f"{names[message.role]}: {message.content}"
        for message in messages
    ]
    return "\n\n".join([*turns, "Answer:"])
