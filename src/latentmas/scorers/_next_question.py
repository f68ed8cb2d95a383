"""Where a text goes on with another question, as base models do after their answer. In linear time; never raises.

What looks like a question's heading may belong to the answer: it restates its own question, or asks itself what
remains. So a text is cut only behind something that is an answer already, and the weaker that is, the more must speak
for a new question.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Final

_MOST: Final = 12
"""Places looked at: the first ones of a text. Each costs a look at all that stands before it."""
_LONGEST: Final = 1000
"""Characters of a question that are looked at."""

_TURN: Final = re.compile(
    r"""
    <\|(?:im_start|start_header_id|start_of_role|start|turn)\|?>\s*(?:user|human)\b   # the turn of a user begins
    | <(?:start_of_turn|seed:bos)>\s*user\b | <[|｜](?:user|User|human|Human|USER_TOKEN)[|｜]>
    | \[INST\] | <longcat_user>
    | ^[#]{2,4}[ ]Instructions?:?[ \t]*$
    | <[|｜](?:im_end|eot_id|eot|end_of_text|endoftext|end[▁_ ]of[▁_ ]sentence|END_OF_TURN_TOKEN|endofturn|return)[|｜]>
    | </s> | <eos> | <end_of_turn> | <turn\|> | <seed:eos>                            # or the turn of the model ends
    | ^(?:user|human)[ \t]*\n(?=\s*\S) | (?<=[.!?)}\]*%0-9])user[ \t]*\n(?=\s*\S)     # without special tokens
    """,
    re.VERBOSE | re.MULTILINE,
)
_HEADING: Final = re.compile(
    r"""
    ^[ \t]{0,3}+(?P<marks>(?:[#*_>=-]{1,4}+[ \t]?+){0,2}+)
    (?:(?:next|new|another|second|follow-?up)[ ]|下一[个個道]?)?
    (?:question|problem|exercise|query|instruction|input|prompt|task|human|user|q
      |pregunta|problema|ejercicio|pergunta|exercício|domanda|esercizio|probl[èe]me|exercice|frage|aufgabe
      |вопрос|задача|задание|câu[ ]hỏi|bài[ ]toán|pertanyaan|soal|soru|pytanie|zadanie|vraag
      |问题|題目|题目|問題|質問|第?[0-9]{0,3}[题題]|问|問|질문|문제|(?:ال)?سؤال|مسألة|پرسش|प्रश्न|सवाल|প্রশ্ন|คำถาม|โจทย์|שאלה
      |(?:example|ejemplo|exemplo|exemple|esempio|beispiel|пример|例题?|例題)(?=[ ]?[0-9]))
    [ \u00a0]?(?:[#(]|no\.?[ ]?|№[ ]?)?(?P<number>[0-9]{1,4})?\)?[*_ \t\u00a0\u202f]{0,4}
    (?P<colon>[:：]|(?<=[0-9qQ])[.)](?=[*_]{0,3}\s)|(?=\n))
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
_UNLABELLED: Final = re.compile(
    r"\n[ \t]*\n(?:(?:[2-9]|[1-9][0-9])[.)][ ])?"
    r"(?=(?!(?:Wait|Let|Hmm|But|So|Actually|However|No|Is|Are|Do|Does|Did|Now|Then|I|We|Why|Check)\b)"
    r"[A-Z][^\n]{40,1000}\?[ \t]*\n)"
)
"""A question in a paragraph of its own, which counts only behind the end of an answer."""
_ANSWER_LABEL: Final = re.compile(
    r"^[ \t#*_>]{0,6}(?:(?:correct|final|the)[ ])?(?:answer|a|ans|solution|response|reasoning|output"
    r"|respuesta|soluci[óo]n|resposta|solução|risposta|soluzione|r[ée]ponse|antwort|l[öo]sung|ответ|решение"
    r"|đáp[ ]án|lời[ ]giải|trả[ ]lời|jawaban|cevap|odpowiedź|antwoord|答案|答え?|解答?|解析|回答|정답|답|해설"
    r"|(?:ال)?جواب|الإجابة|الحل|پاسخ|उत्तर|हल|উত্তর|คำตอบ|תשובה)[ ]?[0-9]{0,4}[*_ \t\u00a0\u202f]{0,4}[:：]"
    r"|^[ \t]*let's think",
    re.MULTILINE | re.IGNORECASE,
)
_DIGIT: Final = re.compile("[0-9]")
_NUMBER: Final = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_OPTION: Final = re.compile(r"(?:^|\s)(?:\([A-Ea-e1-5]\)|[A-E][.):])\s|(?<=\n)[1-5][.)]\s")
_LONG: Final = 50
_SENTENCE: Final = re.compile(r"[.!?](?=\s|$|[\"”'*_])|[。！।]")
_QUESTION_MARKS: Final = str.maketrans("？؟", "??")
_BLANK_BEFORE: Final = re.compile(r"(?:\n[ \t]*\n|[-=*]{3,}[ \t]*\n)[ \t]*$")


class Strength(IntEnum):
    """How surely a text holds an answer: not at all, something that may be one, one that is announced, or its end."""

    NONE = 0
    WEAK = 1
    ANNOUNCED = 2
    BOXED = 3
    FINAL = 4


@dataclass(frozen=True, slots=True)
class _Heading:
    """A line that says that a question follows.

    Attributes:
        trivial: Too short to be a question of its own.
        whole: It has a story before what it asks, or in it, or options below it.
        begins: It begins as a sentence does.
        answered: An answer follows, or nothing at all.
        goes_on: It has the number that stands last before it.
    """

    number: int | None
    trivial: bool
    whole: bool
    begins: bool
    answered: bool
    after_blank: bool
    goes_on: bool


def own_part(text: str, strength: Callable[[str], Strength], *, headings: bool = True) -> tuple[str, bool]:
    """Return the part of a text before the next question, and whether there is one.

    Args:
        strength: How surely the beginning of a text holds an answer.
        headings: Without them only the turns of a chat count.
    """
    kinds = [_TURN, _HEADING, _UNLABELLED] if headings else [_TURN]
    places = merge(*(((one.start(), one) for one in kind.finditer(text)) for kind in kinds), key=itemgetter(0))
    own: list[_Heading] = []
    for at, found in islice(((at, one) for at, one in places if _is_place(one)), _MOST):
        before = strength(text[:at]) if text[:at].strip() else Strength.NONE
        if found.re is _TURN:
            if before is not Strength.NONE:
                return text[:at], True
            continue
        heading = _read(text, found)
        if found.re is _UNLABELLED:
            if before is Strength.FINAL and heading.whole:
                return text[:at], True
        elif _goes_on(heading, own, before):
            return text[:at], True
        else:
            own.append(heading)
    return text, False


def _is_place(found: re.Match[str]) -> bool:
    """Tell whether a heading has a colon, a number or marks of Markdown beside its word; other places need none."""
    return found.re is not _HEADING or any(found[name] for name in ("colon", "number", "marks"))


def _goes_on(heading: _Heading, own: list[_Heading], before: Strength) -> bool:
    """Tell whether a heading begins another question.

    Args:
        own: Headings before it, which belong to the answer.
    """
    is_series = bool(own) and own[0].number == 1 and heading.number not in (None, 1)
    is_sentence_of_its_own = not heading.begins and before is not Strength.FINAL  # "Problem: that is wrong"
    if heading.trivial or is_series or is_sentence_of_its_own:  # "Question 1", "Question 2": it counts its own steps
        return False
    match before:
        case Strength.WEAK:
            return not own and heading.whole and heading.after_blank and heading.answered
        case Strength.ANNOUNCED if heading.whole:
            return heading.answered or heading.after_blank
        case Strength.ANNOUNCED:
            return heading.after_blank and heading.answered and not (own or heading.goes_on)
        case Strength.BOXED:
            return heading.whole or not (own or heading.goes_on)
    return before is Strength.FINAL


def _read(text: str, found: re.Match[str]) -> _Heading:
    body = text[found.end() : found.end() + _LONGEST].translate(_QUESTION_MARKS)
    label = _ANSWER_LABEL.search(body)
    question = (body if label is None else body[: label.start()]).strip(" \t\n*_")
    paragraph = question.partition("\n\n")[0]
    asked = paragraph[: paragraph.rfind("?") + 1] or paragraph
    numbers = _NUMBER.findall(paragraph)
    before = _NUMBER.findall(text, max(0, found.start() - 200), found.start())
    goes_on_from = bool(before) and before[-1] in numbers
    is_last = label is None and found.end() + len(body.rstrip()) >= len(text.rstrip())
    is_cut = is_last and paragraph == question and not _SENTENCE.search(asked[-1:])
    sentences = len(_SENTENCE.findall(asked)) + is_cut
    has_story = sentences > 1 or (len(asked) >= _LONG and len(numbers) > 1 and "?" in asked and not goes_on_from)
    return _Heading(
        number=int(number) if (number := found.groupdict().get("number")) else None,
        trivial=len(paragraph) < 25 and not ("?" in paragraph and _DIGIT.search(paragraph)),
        whole=has_story or ("?" in paragraph and len(_OPTION.findall(question)) > 1),
        begins=question[:1].isupper() or not question[:1].isalpha() or not question[:1].isascii(),
        answered=label is not None or is_last,
        after_blank=_BLANK_BEFORE.search(text[max(0, found.start() - 80) : found.start()]) is not None,
        goes_on=goes_on_from,
    )
