"""Grades answers that are numbers, as exact fractions. Pure, in linear time; no text makes it raise.

An answer is looked for in this order, outside thinking blocks: the last balanced box; the last ``#### n``;
the last "answer is" or "answer:"; and, in a text that was not cut, the last number. `Score.found_by` says
which it was, so that strict and lenient scores both exist. 60 % is 60, not 0.6; of two values none is right. A text
that was cut inside of a later box has no answer, and one that goes on with the next question ends where that begins.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import Final

from latentmas.errors import DataError
from latentmas.samples import Answer, FinishReason, Sample, Score, Verdict
from latentmas.scorers._latex import LONGEST, plain, spelled_value, value
from latentmas.scorers._next_question import Strength, own_part
from latentmas.scorers._text import ascii_digits, boxes, without_end_tokens
from latentmas.thinking import answer_part

# A heading such as `#### 2. Second step` is no answer.
_HASHES: Final = re.compile(r"(?<!#)####(?!#)[ \t]*+(?=[^\n\w]{0,8}[0-9０-９])(?![0-9]+[.):][ \t]+[^\W\d])")
_ANSWER: Final = re.compile(
    r"\banswer\b[*_`\s]{0,8}(?:is|was|would be|equals|comes to|:|：|=)[*_`:\s]{0,8}", re.IGNORECASE
)
_CLAUSE_ENDS: Final = re.compile(
    r"\n|[.!?][*_`\"'”’)\]]*(?=\s|$)|;|<\||(?<=[0-9]):\s|\s—\s?|\s[–-]\s(?![^=\n]{0,60}=)"
    r"|\((?!\s*[-$]?[0-9]+\s*\)|\s*[A-Z]\s*\))"
    r"|,\s+(?=[^\W\d])(?!or\b|and\b)|\b(?:because|since|which|as|after|from|for|in|if|when|per|each|by|so)\b",
    re.IGNORECASE,
)
_LAST: Final = re.compile(
    r"""
    (?: (?<![0-9A-Za-z)\]}.]) - )?                   # a sign, where it cannot be an operator
    (?: \(\( [0-9.]+ \)/\( [0-9.]+ \)\)              # \frac, as `plain` leaves it
    |   √ \(? [0-9.]+ \)?
    |   (?<![\^_.0-9]) (?<!\^[{(]) (?<!\^-)          # neither an exponent nor an index
        (?: [0-9]+ \s (?=[0-9]+/) )?                 # the 3 of 3 1/2
        (?: [0-9]+ (?:\.[0-9]+)? | \.[0-9]+ )
        (?: e [+-]? [0-9]+ (?![0-9a-z]) | \s?\*\s?10\s?\^\s? [{(]? -? [0-9]+ [)}]? | \s?/\s? [0-9]+ (?:\.[0-9]+)? )?
    )
    (?: \s (?:hundred|thousand|million|billion|trillion) \b )?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DIGIT: Final = re.compile("[0-9０-９]")
_RESULT: Final = re.compile(
    r"=\s*[-(\\$£€]{0,4}[0-9]|(?<!\w)(?:so|thus|hence|therefore|total|altogether|left|makes?|earns?|needs?)\b[^.\n]{0,80}?[0-9]",
    re.IGNORECASE,
)
"""What the result of a calculation looks like where nothing announces it."""
_ALONE: Final = re.compile(r"\s*[-$£€]{0,2}[0-9][0-9.,/]{0,20}\s?%?\s*")
_ABROAD: Final = re.compile(
    r"(?:(?<!\w)(?:respuesta|resposta|risposta|r[ée]ponse|antwort|antwoord|ответ|відповідь|đáp[ ]án|câu[ ]trả[ ]lời"
    r"|jawaban\w*|cevap|odpowiedź|odpověď|svaret|απάντηση)(?!\w)|答案|答[えは:：]|정답|답[은:]|جواب|الإجابة|پاسخ|उत्तर|উত্তর|คำตอบ|תשובה)"
    r"[^\n0-9.?]{0,40}[0-9]",
    re.IGNORECASE,
)
"""What announces an answer in other languages; without a word for it, the last number is found all the same."""
_RESULT_ABROAD: Final = re.compile(
    r"(?:(?<!\w)(?:por (?:lo )?tanto|entonces|así que|portanto|então|donc|alors|also|insgesamt|daher|quindi|итак|всего"
    r"|поэтому)(?!\w)|所以|因此|一共|总共|總共|よって|したがって|따라서|إذن|لذلك|इसलिए)[^.。\n]{0,80}?[0-9]",
    re.IGNORECASE,
)
_FACTORIAL: Final = re.compile(r"[0-9)}]\s*!")
_UNIT_DIGIT: Final = re.compile(r"(?<=[A-Za-z])(?<![0-9][eE])[23](?![0-9A-Za-z])")
_MOST_MARKERS: Final = 200
"""Each costs up to `LONGEST` characters of work. Of a text with more, the last ones are looked at."""
_FULL_WIDTH: Final = str.maketrans("０１２３４５６７８９．，", "0123456789.,")


def score(answer: Answer, sample: Sample) -> Score:
    """Grade an answer to a question whose target is a number."""
    return grade(answer.text, sample.target, answer.finish_reason)


def grade(text: str, target: str, finish_reason: FinishReason) -> Score:
    """Grade a text.

    Args:
        target: What `parse_target` takes.
        finish_reason: In a text cut by length the last number is no answer.

    Raises:
        DataError: The target is no number. The text never raises.
    """
    gold = parse_target(target)
    shown = answer_part(text, cut=finish_reason is FinishReason.LENGTH)
    if shown is None:
        return Score(verdict=Verdict.NO_ANSWER, prediction=None)
    answer, goes_on = own_part(ascii_digits(shown), _strength)
    answer = without_end_tokens(answer)
    # What something follows, such as another turn, was not cut itself.
    cut = finish_reason is FinishReason.LENGTH and not goes_on and text.endswith(shown)
    found = boxes(answer, LONGEST)
    box = found.closed
    if cut and found.later is not None and found.ends_inside:
        return Score(verdict=Verdict.NO_ANSWER, prediction=None)
    if box is not None and found.later is not None:
        # Its end was forgotten; what it holds is the answer all the same, where that is a number.
        later = _first_clause(found.later)
        box = later if read_box(later) is not None else box
    for found_by, candidate in (("box", box), ("marker", _marked(answer))):
        if candidate is not None:
            return _grade(candidate, gold, found_by)
    if not cut and (candidate := _last_number(answer)) is not None:
        return _grade(candidate, gold, "last_number")
    return Score(verdict=Verdict.NO_ANSWER, prediction=None)


def parse_target(target: str) -> Fraction:
    """Return the value of a gold answer.

    Raises:
        DataError: It is not exactly one number.
    """
    found = value(plain(ascii_digits(target))) if len(target) <= LONGEST else None
    if found is None:
        raise DataError(f"target {target[:60]!r} is no number; expected one such as 18, 1,450,000, 0.5 or 3/4")
    return found


def read_box(content: str) -> Fraction | None:
    """Return the value of a box; None if it is not exactly one number."""
    # In prose an exclamation mark is joy, in a box it is a factorial.
    return None if _FACTORIAL.search(content) else _read(content)


def _read(candidate: str) -> Fraction | None:
    """Return the value of what was found in a text, in digits or all in words; None if not exactly one number."""
    if len(candidate) > LONGEST:
        return None
    shown = plain(candidate)
    if (found := value(shown)) is not None:
        return found
    spelled = spelled_value(shown)
    return None if spelled is None else Fraction(spelled)


def _grade(candidate: str, gold: Fraction, found_by: str) -> Score:
    found = read_box(candidate) if found_by == "box" else _read(candidate)
    verdict = Verdict.CORRECT if found == gold else Verdict.WRONG
    return Score(verdict=verdict, prediction=candidate[:LONGEST], found_by=found_by)


def _marked(text: str) -> str | None:
    """Return what stands behind the last ``####``, else behind the last "answer is", if that has a number."""
    end = None
    for found in _HASHES.finditer(text):
        end = found.end()
    if end is not None:
        return text[end : end + LONGEST].partition("\n")[0].strip()
    for found in reversed(deque(_ANSWER.finditer(text), maxlen=_MOST_MARKERS)):
        candidate = _first_clause(text[found.end() : found.end() + LONGEST])
        if candidate[:4].casefold() == "not " and _DIGIT.search(text, found.end() + len(candidate)):
            continue  # "not 20, it must be 18": the answer is still to come
        if _DIGIT.search(candidate) or spelled_value(plain(candidate)) is not None:
            return candidate
    return None


def _strength(text: str) -> Strength:
    """Return how surely a text holds an answer already."""
    if _HASHES.search(text):
        return Strength.FINAL
    if boxes(text, LONGEST).closed is not None:
        return Strength.BOXED
    if _ALONE.fullmatch(text) or _marked(text) is not None or _ABROAD.search(text):
        return Strength.ANNOUNCED
    return Strength.WEAK if _RESULT.search(text) or _RESULT_ABROAD.search(text) else Strength.NONE


def _first_clause(text: str) -> str:
    end = _CLAUSE_ENDS.search(text)
    return (text if end is None else text[: end.start()]).strip()


def _last_number(text: str) -> str | None:
    """Return the last number that is neither an exponent nor part of a unit."""
    text = text.translate(_FULL_WIDTH)
    last = max(text.rfind(digit) for digit in "0123456789")
    if last < 0:
        return None
    window = text[max(0, last + 1 - LONGEST) : last + 20]
    shown = _UNIT_DIGIT.sub("", plain(window))
    found = [match[0].strip() for match in _LAST.finditer(shown)]
    return found[-1] if found else None
