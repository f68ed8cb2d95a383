"""How open-weight models mark what they think, and where in a text their answer begins.

The one table of these marks: decoding keeps them in a text (`KEPT`), grading reads them (`answer_part`). Pure and in
linear time; no text makes it raise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Marks:
    """What a model writes before its thought and after it."""

    opens: str
    closes: str


_THINK: Final = Marks("<think>", "</think>")
_CHANNELS: Final = Marks("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")  # gpt-oss
_SPOKEN: Final = (
    Marks("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    Marks("Here's my thought process:", "Here's my response:"),
    Marks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
)
"""Marks that are words. Another model may use the same words without closing anything."""
MARKS: Final[tuple[Marks, ...]] = (
    _THINK,  # DeepSeek R1, Qwen3, GLM, Nemotron, Hunyuan, Olmo 3 and most others
    Marks("<thinking>", "</thinking>"),
    Marks("<thought>", "</thought>"),  # EXAONE Deep
    Marks("<reasoning>", "</reasoning>"),
    Marks("<reason>", "</reason>"),
    Marks("[THINK]", "[/THINK]"),  # Magistral, Ministral
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere Command
    Marks("◁think▷", "◁/think▷"),  # Kimi
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<mm:think>", "</mm:think>"),  # MiniMax M3
    Marks("<longcat_think>", "</longcat_think>"),
    Marks("<think:opensource>", "</think:opensource>"),  # Hy3
    Marks("<ifm|think>", "</ifm|think>"),  # K2 Horizon, by effort
    Marks("<ifm|think_fast>", "</ifm|think_fast>"),
    Marks("<ifm|think_faster>", "</ifm|think_faster>"),
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThoughts
    Marks("<|begin_of_thinking|>", "<|end_of_thinking|>"),
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<|think:start|>", "<|think:end|>"),  # Solar Open 2
    Marks("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),  # PLaMo 3
    Marks("[unused16]", "[unused17]"),  # openPangu
    Marks("<unused94>thought", "<unused95>"),  # MedGemma
    Marks("<|channel>thought", "<channel|>"),  # Gemma 4
    Marks("<|think|>", "<|content|>"),  # Solar Open
    Marks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    _CHANNELS,
    *_SPOKEN,
)
"""Every way known models mark their thinking."""

_CHANNEL_TOKENS: Final = (
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|call|>",
    "<|end|>",
    "<|return|>",
)
KEPT: Final[frozenset[str]] = frozenset(
    {mark for marks in MARKS for mark in (marks.opens, marks.closes)}
    | {"<unused94>", "<|channel>", "<|open|>", "<|close|>", "<|sep|>"}
    | {"<|plamo:begin_", "<|plamo:end_", ":plamo|>"}
    | set(_CHANNEL_TOKENS)
)
"""Tokens that decoding leaves in a text, because grading reads them."""

_MARKED: Final = tuple(marks for marks in MARKS if marks not in (_CHANNELS, *_SPOKEN))
# A thought may be closed by any mark of its family: K2 Horizon has three closing marks and does not keep them apart.
_FAMILIES: Final = {marks: "ifm" if "ifm|" in marks.opens else marks.closes for marks in _MARKED}
_OPENS: Final = {marks.opens: _FAMILIES[marks] for marks in _MARKED}
_CLOSES: Final = {marks.closes: _FAMILIES[marks] for marks in _MARKED} | {"[BEGIN FINAL RESPONSE]": "spoken"}
_EVENT: Final = re.compile(
    "|".join(re.escape(mark) for mark in sorted({*_OPENS, *_CLOSES}, key=len, reverse=True)) + r"|^[ \t]*(?:```|~~~)",
    re.MULTILINE,
)
_IN_CAPITALS: Final = re.compile(r"</?(?:Think(?:ing)?|THINK(?:ING)?|Thought|THOUGHT|Reasoning|REASONING)>")
_QUOTES: Final = "\"'`“”‘’«»"
_UNQUOTED: Final = rf"(?<![{_QUOTES.replace('`', '')}])(?<![^`]`)"
"""Behind no quotation mark; three of the last kind end a block of code."""
_MAY_OPEN_AFTER: Final = re.compile(r"(?:^|[.!?…>\]▷])[\s*_#]*$")
_SPEAKS_OF_IT_BEFORE: Final = re.compile(
    r"(?<!\w)(?:the|an?|and|or|with|using|used?|by|of|in|between|called|like|writes?|put|my|your|this|these)[ \t]+$",
    re.IGNORECASE,
)
_MAY_SPEAK: Final = (*".,;) \t",)
_SPEAKS_OF_IT_AFTER: Final = re.compile(
    r"[.,;)](?!\.)|[ \t]+(?:tags?|tokens?|marks?|markers?|blocks?)\b", re.IGNORECASE
)

_HEADER: Final = re.compile(
    rf"{_UNQUOTED}(?:<\|channel\|>[ \t]*|(?:<\|start\|>assistant|\A)[ \t]*to=)(?P<channel>[a-z]{{1,20}})(?![a-z])"
    r"[^<\n]{0,200}(?:<\|constrain\|>[^<\n]{0,60})?(?:<\|message\|>|\Z)"
)
_MESSAGE_ENDS: Final = re.compile(r"<\|(?:end|return|call|start|channel|eom|eot)\|>")
_ANSWERS: Final = frozenset({"final", "user"})
"""Channels, and whom a message is for, where models name that instead (MuseGlimmer: ``to=user<|message|>``)."""
_TURN_ENDS: Final = re.compile(r"<\|return\|>|<\|start\|>(?!assistant)")
_CUT_BETWEEN: Final = re.compile(r"<\|end\|>\s*<\|start\|>(?:assistant)?\s*\Z")
# The same without the special tokens, as they are dropped by some servers: only the names of role and channel are left.
_NAMED: Final = re.compile(rf"{_UNQUOTED}assistant(?P<channel>final|analysis|commentary)(?![a-z])")
_FIRST_NAMED: Final = re.compile(
    r"\s*(?P<channel>(?:analysis|commentary)(?=[^\W_]|[\"“\\$*]|[ \t]*\n)|final(?=[^\W_a-z]|[\"“\\$*]|[ \t]*\n))"
)


def answer_part(text: str, *, cut: bool = False) -> str | None:
    """Return what follows the last thought; None where the text ends inside of one.

    A closing mark without its opening one closes a thought that the prompt had opened. ``<think>`` and ``</think>``
    count wherever they stand; another mark that is only spoken of, in quotes, in code or within a sentence, does not.

    Args:
        cut: The model was stopped by length. Words that open a thought are then taken at their word.
    """
    final = _final_message(_IN_CAPITALS.sub(lambda tag: tag[0].lower(), text))
    if final is None or (spoken := _after_spoken(final, cut=cut)) is None:
        return None
    return _after_marks(spoken)


def opens_thought(prompt: str) -> bool:
    """Tell whether a prompt ends in an opening mark, so that the reply begins inside of a thought."""
    return prompt.rstrip().endswith(tuple(marks.opens for marks in MARKS))


def _after_spoken(text: str, *, cut: bool) -> str | None:
    begun = text[:200].lstrip()
    for marks in _SPOKEN:
        if begun.startswith(marks.opens):
            if marks.closes in text:
                return text.rpartition(marks.closes)[2]
            return None if cut else text
    return text


def _after_marks(text: str) -> str | None:
    """Return what follows the last closing mark that is no mere mention."""
    at = len(text) - len(text.rpartition(_THINK.closes)[2])
    opened: list[str] = []  # families, each once
    spoken_of: dict[str, int] = {}  # where a family was last mentioned by its opening mark
    fence: int | None = None
    for event in _EVENT.finditer(text, at):
        if (family := _OPENS.get(event[0])) is not None:
            if not opened and not _begins(text, event, at, fence):
                spoken_of[family] = event.start()
            elif family not in opened:
                opened.append(family)
        elif (family := _CLOSES.get(event[0])) is not None:
            if family in opened:
                del opened[opened.index(family) :]
            elif _ends(text, event, opened, spoken_of.get(family), fence):
                opened.clear()
            else:
                continue
            at, fence = event.end(), None
        elif not opened:
            fence = event.start() if fence is None else None
    return None if opened else text[at:]


def _begins(text: str, mark: re.Match[str], at: int, fence: int | None) -> bool:
    """Tell whether an opening mark opens a thought, outside of one."""
    if mark[0] == _THINK.opens:
        return True
    before = text[max(at, mark.start() - 60) : mark.start()].rpartition("\n")[2]
    if fence is not None or _is_quoted(text, mark):
        return False
    # Set apart by white space within a sentence, it is one of its words.
    is_glued = before[-1:].isalnum() and not text[mark.end() : mark.end() + 1].isspace()
    return is_glued or _MAY_OPEN_AFTER.search(before) is not None


def _ends(text: str, mark: re.Match[str], opened: list[str], spoken_of: int | None, fence: int | None) -> bool:
    """Tell whether a closing mark whose opening one is not there ends a thought."""
    # A record says that the prompt had opened a thought by a <think> at its very beginning, whatever the mark was.
    if opened and not (opened == [_THINK.closes] and text.startswith(_THINK.opens)):
        return False
    if spoken_of is not None and not opened:
        same_line = "\n" not in text[max(spoken_of, mark.start() - 400) : mark.start()]
        if same_line or (fence is not None and spoken_of > fence):
            return False
    before, after = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    if before in (" ", "\t") and _SPEAKS_OF_IT_BEFORE.search(text, max(0, mark.start() - 20), mark.start()):
        return False
    return not (_is_quoted(text, mark) or (after in _MAY_SPEAK and _SPEAKS_OF_IT_AFTER.match(text, mark.end())))


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    before, after = text[max(0, mark.start() - 3) : mark.start()], text[mark.end() : mark.end() + 1]
    return before != "```" and before[-1:] in _QUOTES and after in _QUOTES and "" not in (before, after)


def _final_message(text: str) -> str | None:
    """Return the last message on the final channel; None where another channel came last. Other texts come back whole.

    The channels are those of gpt-oss: each message has a header, ``<|channel|>analysis<|message|>``.
    """
    if (headers := list(_HEADER.finditer(text))) or _CUT_BETWEEN.search(text[-200:]):
        return _last_message(text, headers, _MESSAGE_ENDS)
    named = list(_NAMED.finditer(text))
    first = _FIRST_NAMED.match(text)
    headers = named if first is None else [first, *named]
    return _last_message(text, headers, _NAMED) if headers else text


def _last_message(text: str, headers: list[re.Match[str]], ends: re.Pattern[str]) -> str | None:
    """Return the body of the last message of the first turn that has a final one."""
    answer = None
    for header in headers:
        if answer is not None and _TURN_ENDS.search(text, answer[1], header.start()):
            break
        end = ends.search(text, header.end())
        answer = (header["channel"], header.end(), len(text) if end is None else end.start())
    return text[answer[1] : answer[2]] if answer is not None and answer[0] in _ANSWERS else None
