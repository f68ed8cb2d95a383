"""Where an answer stands in a text: its last box, its digits, the tokens at its end. In linear time."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

_BOX_OPENS: Final = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BOX_BEGINS: Final = re.compile(r"\\(?:bo(?:x(?:ed?)?)?|fb(?:ox?)?)\s*\Z")
_SPECIAL: Final = re.compile(
    r"<[|｜](?:ifm\|)?[^|｜<>\n]{1,40}[|｜]>|<turn\|>|</s>|<eos>|<(?:end_of_turn|end_of_utterance|seed:eos)>|</longcat_s>"
)
"""Tokens that end a turn, which some servers leave in a text."""
_TAIL: Final = 200
_BRACES: Final = re.compile(r"\\[\\{}]|\{+|\}+")
"""A run of braces is one step, so that a million of them take no time."""
_FOREIGN_DIGIT: Final = re.compile(r"(?![0-9])\d|[\u066A-\u066C]|(?<=\d)\u060C(?=\d)")
"""A decimal digit of another script, or a sign that stands between or behind digits in Arabic."""
_DIRECTION: Final = re.compile(r"[\u200B-\u200F\u202A-\u202E\u2060-\u2069\u061C\uFEFF]")
"""Which way a text runs, and other marks without width."""
_LAKHS: Final = re.compile(r"(?<![\d,])(?:(?![0-9])\d){1,2}(?:,(?:(?![0-9])\d){2})+,(?:(?![0-9])\d){3}(?!\d|,\d)")
"""A number grouped as in India, in other digits than ASCII, where it could be a list."""
_ARABIC_SIGNS: Final = {"\u066a": "%", "\u066b": ".", "\u066c": ",", "\u060c": ","}


def without_end_tokens(text: str) -> str:
    """Return a text without the special tokens at its end."""
    return text[:-_TAIL] + _SPECIAL.sub("", text[-_TAIL:])


def ascii_digits(text: str) -> str:
    """Return a text with the digits 0 to 9 in place of those of other scripts, without marks of direction."""
    if text.isascii():
        return text
    text = _DIRECTION.sub("", text)
    text = _LAKHS.sub(lambda found: found[0].replace(",", ""), text)
    return _FOREIGN_DIGIT.sub(_ascii_digit, text)


def _ascii_digit(found: re.Match[str]) -> str:
    return _ARABIC_SIGNS.get(found[0]) or str(unicodedata.decimal(found[0]))


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of a text.

    Attributes:
        closed: Content of the last box that is closed and not empty; None where there is none.
        later: What the first line of a box behind it holds that was never closed; None where all were.
        ends_inside: The text ends soon after that box begins.
    """

    closed: str | None = None
    later: str | None = None
    ends_inside: bool = False


def _matched(text: str) -> tuple[list[int], dict[int, int]]:
    """Return where runs of braces begin that were not closed, and where the first brace of other runs is closed."""
    open_runs: list[tuple[int, int]] = []  # where each begins, and how many of its braces are still open
    ends: dict[int, int] = {}
    for run in _BRACES.finditer(text):
        if run[0][0] == "{":
            open_runs.append((run.start(), len(run[0])))
        elif run[0][0] == "}":
            at = run.start()
            while at < run.end() and open_runs:
                start, depth = open_runs.pop()
                closing = min(depth, run.end() - at)
                at += closing
                if closing == depth:
                    ends[start] = at - 1
                else:
                    open_runs.append((start, depth - closing))
    return [start for start, _ in open_runs], ends


def boxes(text: str, longest: int) -> Boxes:
    """Return what the last boxes of a text hold.

    Args:
        longest: Characters looked at. A longer content comes back cut, one character longer than this.
    """
    opened_at = {found.end() - 1 for found in _BOX_OPENS.finditer(text)}
    if not opened_at:
        return Boxes(None, "", ends_inside=True) if _BOX_BEGINS.search(text[-20:]) else Boxes()
    stack, ends = _matched(text)
    closed, at = None, -1
    for start in sorted(ends.keys() & opened_at, reverse=True):
        if content := text[start + 1 : min(ends[start], start + 2 + longest)].strip():
            closed, at = content, start
            break
    opened = max((start for start in stack if start in opened_at), default=-1)
    if opened <= at:
        return Boxes(closed, "", ends_inside=True) if _BOX_BEGINS.search(text[-20:]) else Boxes(closed)
    later = text[opened + 1 : opened + 2 + longest].partition("\n")[0].strip()
    return Boxes(closed, later, ends_inside=len(text) - opened <= longest)
