"""Dialogue: what one agent has read and written as a chat, and the tokens with which it goes on.

Memory holds a chat up to where the reply begins, and then what the agent wrote. A further message needs the end of that
reply, the frame of the message and the beginning of the next reply: what the template puts behind a reply, which is
seen by rendering the chat with a probe in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from latentmas.errors import ConfigError
from latentmas.protocols import Codec, Encoded
from latentmas.samples import Message

_REPLY: Final = "8c1f-reply probe"
_NOTHING: Final = Encoded("", ())
_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class NextRead:
    """What is to be read next.

    Attributes:
        read: The tokens to append to memory; the text is that of the Read as it then stands.
        forgotten: The newest tokens of memory to forget before: a reply that was begun and is not to come yet.
    """

    read: Encoded
    forgotten: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """One agent's chat.

    Attributes:
        system: System message before the first user message; None has none.
        messages: All of them but a reply that is not closed yet.
        prompt: The chat as the template renders it, up to where the reply begins.
        last: What was read last, of it.
        tokens: Everything read and written, as memory holds it.
        written: Tokens of the reply that is not closed yet; None where nothing was written.
    """

    codec: Codec
    system: str | None = None
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    last: Encoded = _NOTHING
    tokens: tuple[int, ...] = ()
    written: tuple[int, ...] | None = None

    @property
    def reply(self) -> str:
        """The text of the reply that is not closed yet."""
        return self.codec.decode(self.written or ())

    def wrote(self, tokens: tuple[int, ...]) -> Dialogue:
        """Return the dialogue after the agent has written."""
        return replace(self, tokens=self.tokens + tokens, written=(self.written or ()) + tokens)

    def heard(self, text: str, *, untouched: bool = False, as_written: bool = False) -> tuple[Dialogue, NextRead]:
        """Return the dialogue after the agent has read a user message, and what it reads.

        Args:
            untouched: Nothing came after the last message. The two then stand in a row; otherwise the reply is closed,
                empty where it has thoughts and no text.
            as_written: Go on where the template would show the reply in other words.

        Raises:
            ConfigError: The template refuses the chat, or shows earlier turns in other words than memory has.
        """
        user = Message("user", text)
        if not self.messages:
            chat = (user,) if self.system is None else (Message("system", self.system), user)
            encoded = self.codec.encode_chat(chat)
            begun = replace(self, messages=chat, prompt=encoded.text, last=encoded, tokens=encoded.tokens)
            return begun, NextRead(encoded)
        return self._with_one_more(user) if untouched else self._after_reply(user, as_written)

    def _with_one_more(self, user: Message) -> tuple[Dialogue, NextRead]:
        """Put a message behind one that nobody has replied to; the beginning of the reply is forgotten."""
        chat = (*self.messages, user)
        whole = self.codec.encode_chat(chat)
        same = _common(self.prompt, whole.text)
        begins = len(self.prompt) - len(self.last.text)
        if same < begins:
            raise ConfigError(_REWRITES)
        again = whole if begins == 0 else self._encoded(whole.text[begins:])
        kept = _common(self.last.tokens, again.tokens)
        after = replace(
            self,
            messages=chat,
            prompt=whole.text,
            last=again,
            tokens=self.tokens[: len(self.tokens) - len(self.last.tokens)] + again.tokens,
        )
        turn = NextRead(Encoded(again.text, again.tokens[kept:]), forgotten=len(self.last.tokens) - kept)
        return after, turn

    def _after_reply(self, user: Message, as_written: bool) -> tuple[Dialogue, NextRead]:
        """Close the reply and put a message behind it."""
        before, behind = self._around_reply(user)
        opened = _common(self.prompt, before)
        if opened < min(len(self.prompt), len(before)):
            raise ConfigError(_REWRITES)
        # What the template itself puts before a reply, such as the name of a channel, is no part of its content.
        framed = before[opened:].strip() and self.reply.startswith(before[opened:])
        content = self.reply.removeprefix(before[opened:]) if framed else self.reply
        chat = (*self.messages, Message("assistant", content), user)
        whole = self._whole(chat)
        shown = None
        if whole is not None and whole.text.startswith(before) and whole.text.endswith(behind):
            shown = whole.text[len(before) : len(whole.text) - len(behind)]
        in_memory, in_chat = self.prompt[opened:] + self.reply, before[opened:] + (shown or "")
        # Where there is no text there are thoughts, which no template shows. Blanks stay as they were written.
        if not as_written and self.written and (shown is None or in_memory.strip() != in_chat.strip()):
            how = "nothing at all" if shown is None else _excerpt(in_chat)
            raise ConfigError(
                f"memory has {_excerpt(in_memory)} where the model's chat template shows {how} once a later message "
                "follows; read(..., as_written=True) keeps what was written, and a new session can read it as shown"
            )
        prompt = whole.text if whole is not None and shown is not None else before + self.reply + behind
        if not self.written:  # nobody wrote what the template itself puts before a reply, such as a blank
            behind = before[opened:] + behind
        read = Encoded(behind, self._tokens_behind(whole, behind))
        after = replace(self, messages=chat, prompt=prompt, last=read, tokens=self.tokens + read.tokens, written=None)
        return after, NextRead(read)

    def _around_reply(self, user: Message) -> tuple[str, str]:
        """Return what the template shows before a reply that stands here, and what behind it."""
        text = self.codec.encode_chat((*self.messages, Message("assistant", _REPLY), user)).text
        if text.count(_REPLY) != 1:
            raise ConfigError("the model's chat template leaves out what the assistant said; repair its chat_template")
        before, _, behind = text.partition(_REPLY)
        return before, behind

    def _whole(self, chat: tuple[Message, ...]) -> Encoded | None:
        """Return the chat as the template shows it; None where it refuses what was written."""
        try:
            return self.codec.encode_chat(chat)
        except ConfigError:
            return None

    def _tokens_behind(self, whole: Encoded | None, behind: str) -> tuple[int, ...]:
        """Return the tokens of what stands behind a reply, as they are in the chat as a whole.

        Memory keeps what was written, even where the same text would become other tokens.
        """
        if whole is not None:
            if whole.tokens[: len(self.tokens)] == self.tokens:
                return whole.tokens[len(self.tokens) :]
            if whole.text.endswith(behind):
                tokens = self.codec.encode_text(whole.text)
                until = self.codec.encode_text(whole.text[: len(whole.text) - len(behind)])
                if tokens[: len(until)] == until:
                    return tokens[len(until) :]
        return self.codec.encode_text(behind)

    def _encoded(self, text: str) -> Encoded:
        return Encoded(text, self.codec.encode_text(text))


_REWRITES: Final = (
    "the model's chat template shows earlier turns in other words once a later message follows, so nothing that is in "
    "memory fits this dialogue; let a new session read all of it, or leave out system="
)


def _common(first: Sequence[object], second: Sequence[object]) -> int:
    """Return how many items two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
