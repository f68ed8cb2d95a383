"""Grades answers to multiple-choice questions. Pure, in linear time; no text makes it raise.

An answer is looked for in this order, outside thinking blocks: the last box that is not empty; the last "answer is
(C)" and its like; and, in a text that was not cut, the last bold option, then a line that is only an option or a last
line that ends in one. What would be the answer if things were otherwise counts only where nothing else is said.
`Score.found_by` says which it was. A box is always an answer, even where nobody can read it; a marker is one only
where an option follows; a letter in prose never is. Of two options none is right. A text that was cut inside of a later
box has no answer, and one that goes on with the next question ends where that begins.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from latentmas.samples import Answer, FinishReason, Sample, Score, Verdict
from latentmas.scorers._next_question import Strength, own_part
from latentmas.scorers._options import LABEL, LONGEST, Named, Row
from latentmas.scorers._text import ascii_digits, boxes, without_end_tokens
from latentmas.thinking import answer_part

_MOST: Final = 200
"""Markers, bold words and lines looked at: the last ones of a text. Each costs up to `LONGEST` characters of work."""
_FULL_WIDTH: Final = {ord(wide): ord(wide) - 0xFEE0 for wide in "ＡＢＣＤＥＦＧＨＩＪＫＬＭＮＯＰＱＲＳＴＵＶＷＸＹＺ"}
"""Letters as they are typed among Chinese and Japanese ones."""
_SHOWN: Final = 400
"""Characters of a box that cannot be read, as a prediction."""

_MARKUP: Final = re.compile(r"[*`$\"“”]+|</?(?:b|strong|em|i|u|p|span|div|h[1-6])>|\\[()\[\]]")
_ANSWER_TAG: Final = re.compile(r"<(/?)(?:final_?)?answer>", re.IGNORECASE)
_ANSWER: Final = re.compile(
    r"""
    (?<![^\W_]) (?=[abcfmorIW])  # the first letters of what follows, for speed
    (?: (?:answers?|ans|option|choice
    |(?:correct|right|best|final|my)[ ](?:response|letter|selection|decision|conclusion))\b
    (?:[ \t]+(?:to|for|of|here|among|from|that|in|choice|option|letter|which)\b
        (?:[ \t]+(?!(?:answer|option|choice)\b)[\w'-]{1,24}+){0,8}? )?
    (?: [\s'_}]{0,8}\b(?:is|was|are|would[ ]be|will[ ]be|should[ ]be|must[ ]be|has[ ]to[ ]be)\b(?!')[ \t]*[:：]?
    |   [\s'_}]{0,8}[:：=]
    |   [ \t]{0,8}(?:->|=>|[→⇒–—])
    |   [ \t]{1,8}-{1,3}(?=[ \t])
    |   (?<=\bans)\.(?=[ \t])
    |   (?<=answer)[ \t_]{0,8}\n
    |   (?<=answer)[ \t]{1,8}(?=[(\[]?[A-Z0-9]{1,2}[)\]]?[ \t]{0,8}\.?[ \t]{0,8}(?:\n|$))
    )
    |   (?P<open>conclusion)[\s'_}]{0,8}[:：]
    |   (?:I|we)(?:['’](?:ll|d|m|re)|[ ](?:would|will|should|must|can|am|are|shall|have[ ]to|need[ ]to|therefore|thus))?
    [ ](?:choose|chose|select|selected|pick|picked|go|going|went|choosing)(?:[ ](?:with|for))?(?=\s) )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NOT_THE_ANSWER: Final = re.compile(
    r"\b(?:incorrect|wrong|another|other|one|first|second|third|next"
    r"|initial|previous|earlier|alternative|false|possible"
    r"|tempting|worst|poor|invalid|any|each|every|no|not|of|your|their|his|her)[ \t]+$"
    r"|(?:\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|doubt)|n't think|not think|not say)"
    r"(?:[ \t]+(?:that|the|my|our|this|correct|right|best|final))*[ \t]*$",
    re.IGNORECASE,
)
_IS_RIGHT: Final = re.compile(
    r"""
    [ \t](?:is|would[ ]be|must[ ]be|has[ ]to[ ]be)[ \t]+
    (?:(?:clearly|thus|therefore|indeed|definitely|probably|likely)[ \t]+)?
    (?: (?P<surely> (?:the|our|my)[ \t]+(?:(?:only|single|one|correct|right|best|final|most[ \t]\w+)[ \t]+){0,3}
        (?:answer|option|choice)\b )
    |   (?:the[ \t]+)?(?:correct|right)(?:[ \t]+one)?(?=[ \t]*(?:[.,;!\n]|$|because\b|since\b|as\b)) )
    (?!['\w])(?![ \t]*(?:\?|if\b|only\b|when\b|unless\b))
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE_END: Final = re.compile(r"[.!?](?=\s|$)|\n")
_IF: Final = re.compile(
    r"\b(?:if|unless|suppos(?:e|ing)|assuming)\b"
    r"|(?:^|[,;])\s*(?:(?:and|but)\s+)?(?:had|were|should)\b",
    re.IGNORECASE,
)
_OTHER_THAN: Final = re.compile(
    r"\s*(?:neither|not(?!\s+(?:only|just|merely|simply)\b))\b[^.\n]{1,100}?"
    r"(?:\bbut(?:\s+rather)?(?:\s+it\s+is|\s+it's)?|[,;]\s*(?:it\s+is|it's|rather))\s+(?!also\b)",
    re.IGNORECASE,
)
_ABROAD: Final = re.compile(
    r"""
    (?: (?: 答案 | 正[确確][选選][项項] ) (?:[应應][该該]?)? (?:是|[为為]|[选選][择擇]?|\s{0,4}[:：]){1,2}
    |   (?:因此|所以|[应應][该該]?|故|于是|综上)[ ，,]{0,2}(?:我们?)?(?:[应應][该該]?)?
        [选選](?:[择擇]|为|為)?\s{0,4}[:：]?
    |   (?<!\w)(?: respuesta(?:[ ](?:correcta|final))?(?:[ ]{1,4}(?:es|ser[ií]a)\b|[ ]{0,4}:)(?:[ ]{1,4}la\b)?
        |   r[ée]ponse(?:[ ](?:correcte|finale|exacte))?(?:[ ]{1,4}est\b|[ ]{0,4}:)(?:[ ]{1,4}la\b)?
        |   antwort(?:[ ]{1,4}(?:ist|lautet)\b|[ ]{0,4}:)(?:[ ]{1,4}(?:also|daher|somit)\b)?
        |   resposta(?:[ ](?:correta|certa|final))?(?:[ ]{1,4}[ée]\b|[ ]{0,4}:)(?:[ ]{1,4}a(?=[ ]))?
        |   risposta(?:[ ](?:corretta|esatta|giusta|finale))?(?:[ ]{1,4}[èe]\b|[ ]{0,4}:)(?:[ ]{1,4}la\b)?
        |   ответ(?:[ ]{0,4}[:—–-]|[ ]{1,4}это\b)
        )
    )
    [ \t:：]{0,4}
    (?:(?:[选選][项項]|opci[óo]n|option|letra|lettre|lettera|antwort|opzione|opção|alternativa|вариант)[ ]{0,4})?
    ([(（\[]?)[ ]?([A-Za-z0-9]{1,2})(?![A-Za-z0-9]|[.,:'-]\w)[ ]?([)）\]]?)
    (?P<also>[ ]?(?:[、,，/和或与與及]|[ ](?:y|o|u|et|ou|und|oder|e|и|или)[ ])[ ]?[(（\[]?([A-Z0-9])(?!\w))?
    (?=[ ]{0,4}(?:$|[\n.,;!。，；！、:：(（-]|选项|選項
        |(?:porque|ya[ ]que|car|parce|weil|da|denn|perch[ée]|потому|так[ ]как)\b)|(?<=[)）\]]))
    """,
    re.IGNORECASE | re.VERBOSE,
)
_IF_ABROAD: Final = re.compile(
    r"(?:如果|假如|若|不是|错误|錯誤|[其]他|\b(?:si|wenn|falls|se|если|otra|autre|andere))[^。.，,\n]{0,12}$",
    re.IGNORECASE,
)
_SUBJECT_AND_TEXT: Final = re.compile(rf"(?<!\S)(?:[(\[]{LABEL}[)\]]|{LABEL}[.:)])(?=\s)")
_SUBJECT: Final = re.compile(rf"(?:^|(?<=[\s(\[]))([(\[]?){LABEL}([)\]]?)[.:]?$")
_MAY_PRECEDE: Final = re.compile(
    r"(?:^|[.!?:;,>#(-]|\b(?:so|thus|therefore|hence|that|and|but|is|means|conclude|believe|think|clearly|indeed|option"
    r"|choice|answer|letter))\s*$",
    re.IGNORECASE,
)
_IS_NAMED: Final = re.compile(r"\b(?:option|choice|answer|number)\s+\d+[.:]?$", re.IGNORECASE)
_AT_END: Final = re.compile(rf"[^.\n]{{1,200}}?[(\[]{LABEL}[)\]](?=\s*(?:$|[.,;!]))")
_TURNS: Final = re.compile(
    r"\b(?:not|than|as|for|except|unlike|instead|or|nor|neither|if|option|choice)\b|n't|\?", re.IGNORECASE
)

_BOLD: Final = re.compile(
    r"\*\*([^*\n]+)\*\*|__([^_\n]+)__|(?<![*\w])\*([^*\s][^*\n]*)\*(?![*\w])|<(?:b|strong)>([^<\n]+)</"
    r"|\\textbf\{([^{}\n]+)\}"
)
_BEFORE_BOLD: Final = re.compile(
    r"\b(?:not|nor|neither|than|unlike|eliminates?|excludes?|out|against|rejects?|discards?|except|without|vitamin"
    r"|hepatitis|types?|groups?|grade|stage|class|phase|step|part|if|whether)\s+(?:option\s+|choice\s+)?$|n't\s+$",
    re.IGNORECASE,
)
_AFTER_BOLD: Final = re.compile(
    r"\s*(?:[:：–—?]|-\s|(?:is|was|are|would be|seems?|looks)\s+(?:\w+\s+)?"
    r"(?:not|incorrect|invalid|wrong|false|un\w+|ruled|eliminated|excluded|out)\b|isn't|can't|cannot|doesn't|does not)",
    re.IGNORECASE,
)
_ENDS_CLAUSE: Final = re.compile(r"\s*(?:$|[\n.,;!)]|because\b|since\b)")
_BULLET: Final = re.compile(r"^[ \t]*(?:[>#•+-]+[ \t]+)*")
_ARROW: Final = re.compile(r"(?:=+>|[→⇒])\s*")
_ENDS_IN: Final = re.compile(
    rf"(?P<sure>\b(?:which|this|that)\s(?:best\s)?(?:corresponds\sto|matches)\s(?:option|choice|answer)\s)?"
    rf"[(\[]?(?P<label>{LABEL})[)\]]?[ .!]{{0,4}}$"
)
_DOUBTS: Final = re.compile(
    r"\b(?:not|never|no|nor|neither|un\w+|than|unlike|except|if|or|rather|instead"
    r"|exclud\w+|rul\w+|wrong|incorrect|initial\w*"
    r"|first|tempting|would|could|might|may|other|another|differential)\b|n't|\?",
    re.IGNORECASE,
)
_LINE: Final = re.compile(r"^[ \t>#•+-]{0,8}+([^\n]{1,300})$", re.MULTILINE)


def score(answer: Answer, sample: Sample) -> Score:
    """Grade an answer to a multiple-choice question."""
    return grade(answer.text, sample.target, answer.finish_reason, sample.labels, sample.options)


def grade(
    text: str, target: str, finish_reason: FinishReason, labels: tuple[str, ...], options: tuple[str, ...] = ()
) -> Score:
    """Grade a text.

    Args:
        target: What `resolve_target` takes.
        finish_reason: In a text cut by length only a box or a marker is an answer.
        options: As many as labels, or none where only the labels are known.

    Raises:
        DataError: Labels, options or target do not fit each other. The text never raises.
    """
    row = Row(labels, options)
    gold = row.resolve(target)
    found_by, named = None, None
    if (shown := answer_part(text, cut=finish_reason is FinishReason.LENGTH)) is not None:
        answer, goes_on = own_part(ascii_digits(shown).translate(_FULL_WIDTH), lambda before: _strength(before, row))
        # What something follows, such as another turn, was not cut itself.
        cut = finish_reason is FinishReason.LENGTH and not goes_on and text.endswith(shown)
        found_by, named = _find(without_end_tokens(answer), row, cut=cut)
    if named is None:
        return Score(verdict=Verdict.NO_ANSWER, prediction=None)
    verdict = Verdict.CORRECT if named.label == gold else Verdict.WRONG
    return Score(verdict=verdict, prediction=named.shown, found_by=found_by, detail=named.detail)


def resolve_target(target: str, labels: tuple[str, ...], options: tuple[str, ...] = ()) -> str:
    """Return the label of a gold answer: itself a label, or else the text of exactly one option.

    Raises:
        DataError: It is neither; or labels and options do not fit each other.
    """
    return Row(labels, options).resolve(target)


def _find(text: str, row: Row, *, cut: bool) -> tuple[str | None, Named | None]:
    """Return how the answer was found and what it names."""
    found = boxes(text, LONGEST)
    if cut and found.later is not None and found.ends_inside:
        return None, None
    if found.closed is not None:
        later = row.read(found.later, in_prose=False) if found.later else None
        box = found.closed if later is None or later.label is None else found.later or ""
        return "box", row.read(box, in_prose=False) or Named(None, box[:_SHOWN], "names no option")
    if (named := _marked(_plain(text), row)) is not None:
        return "marker", named
    if not cut and (label := _bold(text, row)) is not None:
        return "bold", Named(label, label)
    if not cut and (label := _line(_plain(text), row)) is not None:
        return "line", Named(label, label)
    return None, None


def _plain(text: str) -> str:
    """Return a text without markup, in which a tag announces what an "answer:" does."""
    return _MARKUP.sub("", _ANSWER_TAG.sub(lambda tag: "\n" if tag[1] else "\nanswer: ", text))


def _strength(text: str, row: Row) -> Strength:
    """Return how surely a text holds an answer already."""
    found_by, _ = _find(text, row, cut=False)
    if found_by is None:
        return Strength.NONE
    # A line that is all there is needs nothing to announce it.
    otherwise = Strength.WEAK if "\n" in text.strip() else Strength.ANNOUNCED
    return {"box": Strength.BOXED, "marker": Strength.ANNOUNCED}.get(found_by, otherwise)


def _marked(text: str, row: Row) -> Named | None:
    """Return what the last marker names: "answer is C" or "C is the right answer", else "C is right"."""
    answers = [(found.end(), found, _announced) for found in deque(_ANSWER.finditer(text), maxlen=_MOST)]
    abroad = [(found.end(), found, _announced_abroad) for found in deque(_ABROAD.finditer(text), maxlen=_MOST)]
    rights = [(found.start(), found, _praised) for found in deque(_IS_RIGHT.finditer(text), maxlen=_MOST)]
    sure = [*answers, *abroad, *(right for right in rights if right[1]["surely"])]
    ranked = [*sorted(sure, key=lambda one: one[0], reverse=True), *reversed(rights)]
    for _, found, read in sorted(ranked, key=lambda one: _is_conditional(text, one[1])):
        if (named := read(text, found, row)) is not None:
            return named
    return None


def _is_conditional(text: str, marker: re.Match[str]) -> bool:
    """Tell whether a marker says what would be the answer if something were otherwise."""
    if "would" not in marker[0].lower():
        return False
    before = _SENTENCE_END.split(text[max(0, marker.start() - 200) : marker.start()])[-1]
    after = _SENTENCE_END.split(text[marker.end() : marker.end() + 200])[0]
    return _IF.search(before) is not None or _IF.search(after) is not None


def _announced_abroad(text: str, marker: re.Match[str], row: Row) -> Named | None:
    """Read the letter after "答案是", "la respuesta es" and their like."""
    label = row.label_of(marker[2])
    is_word = marker[2].islower() and not marker[1]
    if label is None or is_word or _IF_ABROAD.search(text[max(0, marker.start() - 40) : marker.start()]):
        return None
    other = row.label_of(marker[5]) if marker["also"] else None
    if other is not None and other != label:
        return Named(None, f"{label}, {other}", f"names more than one option: {label} and {other}")
    return Named(label, label)


def _announced(text: str, marker: re.Match[str], row: Row) -> Named | None:
    """Read the line after "answer is" and its like."""
    if _NOT_THE_ANSWER.search(text[max(0, marker.start() - 60) : marker.start()]):
        return None
    after = text[marker.end() : marker.end() + LONGEST]
    lines = [_BULLET.sub("", line) for line in after.split("\n", maxsplit=8)[:8] if line.strip()]
    if not lines:
        return None
    on_next_line = not after.partition("\n")[0].strip() or marker[0].endswith("\n")
    if on_next_line and _begins_a_list(lines, row):
        return None
    named = row.read(lines[0], in_prose=True)
    if named is None and (denied := _OTHER_THAN.match(lines[0])):
        named = row.read(lines[0][denied.end() :], in_prose=True)
    if named is None and (end := _AT_END.match(lines[0])) and not _TURNS.search(lines[0], 0, end.start(1)):
        label = row.label_of(end[1])
        named = Named(label, label) if label is not None else None
    # "I have to choose A, B or C" and "Which option is right: A or B?" name options without being an answer.
    is_open = marker["open"] or marker[0][:1] in "IiWw" or lines[0].rstrip().endswith("?")
    return None if is_open and named is not None and named.label is None else named


def _begins_a_list(lines: Sequence[str], row: Row) -> bool:
    """Tell whether two lines are the question's first options over again."""
    first, second = (row.label_that_begins(line) for line in (*lines, "")[:2])
    return first is not None and second is not None and row.labels.index(second) == row.labels.index(first) + 1


def _praised(text: str, marker: re.Match[str], row: Row) -> Named | None:
    """Read what stands before "is the right answer"."""
    before = text[max(0, marker.start() - LONGEST) : marker.start()].rpartition("\n")[2].rstrip()
    for begun in deque(_SUBJECT_AND_TEXT.finditer(before[-200:]), maxlen=3):
        subject = before[-200:][begun.start() :]
        own = row.strictly(subject, with_text=True) if row.options else None
        if own is not None and _MAY_PRECEDE.search(before[: len(before) - len(subject)]):
            return Named(own, own)
    found = _SUBJECT.search(before)
    if found is None or (label := row.label_of(found[2])) is None:
        return None
    is_count = found[2].isdecimal() and not marker["surely"] and not _IS_NAMED.search(before)
    is_word = not found[1] and (found[2].islower() or is_count)
    return None if is_word or not _MAY_PRECEDE.search(before[: found.start()]) else Named(label, label)


def _bold(text: str, row: Row) -> str | None:
    """Return the last option in bold that is neither a heading nor denied."""
    labels = []
    for found in deque(_BOLD.finditer(text), maxlen=_MOST):
        content = next(group for group in found.groups() if group is not None)
        label = row.strictly(content[:LONGEST], with_text=True)
        if label is None and not row.options and (named := row.read(content[:LONGEST], in_prose=False)):
            label = named.label
        if label is None or content.rstrip().endswith((":", "：")):
            continue
        before = text[max(0, found.start() - 60) : found.start()].rpartition("\n")[2]
        after = text[found.end() : found.end() + 60]
        numbers_a_line = (
            content.rstrip()[-1] in ".)" and _BULLET.fullmatch(f"{before} ") and after.partition("\n")[0].strip()
        )
        counts_things = content.strip().isdecimal() and not _ENDS_CLAUSE.match(after)
        if not (numbers_a_line or counts_things or _BEFORE_BOLD.search(before) or _AFTER_BOLD.match(after)):
            labels.append(label)
    return _last(labels, row)


def _line(text: str, row: Row) -> str | None:
    """Return the last line that is only a label, or the last line of all with an option's text as well."""
    lines = list(deque(_LINE.finditer(text), maxlen=_MOST))
    shown = [line[1].strip() for line in lines if line[1].strip()]
    if not shown:
        return None
    if (label := row.strictly(shown[-1], with_text=True)) is not None and not _begins_a_list(shown[-2:], row):
        return label
    if (label := _end_of_line(shown[-1], row)) is not None:
        return label
    if (label := row.text_alone(text) if len(text) <= LONGEST else None) is not None:
        return label
    return _last([label for line in shown if len(line) <= 24 and (label := row.strictly(line, with_text=False))], row)


def _end_of_line(line: str, row: Row) -> str | None:
    """Return the label after an arrow, or the one a sentence ends in: "corresponds to option C", "its own text (C)"."""
    if arrow := _ARROW.match(line):
        label = row.strictly(line[arrow.end() :], with_text=True)
        return None if label is None or label.isdecimal() else label
    sentence = _SENTENCE_END.split(line.rstrip(" .!"))[-1]
    found = _ENDS_IN.search(sentence)
    if found is None or _DOUBTS.search(sentence) or (label := row.label_of(found["label"])) is None:
        return None
    in_brackets = found[0].startswith(("(", "["))
    is_named = found["sure"] or (in_brackets and row.follows_own_text(sentence[: found.start()], label))
    return label if is_named else None


def _last(labels: Iterable[str], row: Row) -> str | None:
    """Return the last label that is no part of a list of options: three or more of them, or all, in order."""
    runs: list[list[str]] = []
    for label in labels:
        follows = runs and row.labels.index(label) == row.labels.index(runs[-1][-1]) + 1
        runs[-1].append(label) if follows else runs.append([label])
    answers = [run[-1] for run in runs if len(run) < min(3, max(2, len(row.labels)))]
    return answers[-1] if answers else None
