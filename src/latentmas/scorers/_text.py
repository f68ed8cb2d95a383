"""Where an answer stands in a text: what follows the thinking, and the last box of that. In linear time."""

from __future__ import annotations

import re
from typing import Final

_BOX_OPENS: Final = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SPECIAL: Final = re.compile(r"<\|[^|<>\n]{1,40}\|>|</s>|<eos>|<end_of_turn>")
"""Tokens that end a turn, which some servers leave in a text."""
_TAIL: Final = 200
_BRACE: Final = re.compile(r"\\[\\{}]|[{}]")


def visible(text: str) -> str | None:
    """Return what follows the last thinking block; None where one was never closed."""
    shown = text.rpartition("</think>")[2]
    shown = shown[:-_TAIL] + _SPECIAL.sub("", shown[-_TAIL:])
    return None if "<think>" in shown else shown


def last_box(text: str, longest: int) -> str | None:
    """Return the content of the last box that is closed and not empty.

    Args:
        longest: Characters looked at. A longer content comes back cut, one character longer than this.
    """
    opened_at = {found.end() - 1 for found in _BOX_OPENS.finditer(text)}
    if not opened_at:
        return None
    stack: list[int] = []
    boxes: dict[int, int] = {}
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            stack.append(brace.start())
        elif brace[0] == "}" and stack and (start := stack.pop()) in opened_at:
            boxes[start] = brace.start()
    for start in sorted(boxes, reverse=True):
        if content := text[start + 1 : min(boxes[start], start + 2 + longest)].strip():
            return content
    return None
