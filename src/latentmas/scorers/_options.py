"""The options of a multiple-choice question, and which of them a short text names.

A label counts where it stands alone or before a separator, never as the first word of prose: "A planet" is no A and
"C-reactive" no C. Callers pass at most `LONGEST` characters, so nothing here can be slow.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from latentmas.errors import DataError
from latentmas.scorers import _latex
from latentmas.scorers._text import ascii_digits

LONGEST: Final = 1000
"""Characters of an answer that are looked at."""

_SUPERSCRIPTS: Final = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
# Applied in this order, once each, to short texts.
_TIDY: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[a-zA-Z])", r"\\"),  # an answer that was escaped once more, as in JSON
        (r"\\(?:begin|end) ?\{(?:array|aligned|gathered|center)\}(?: ?\{[clr| ]{0,8}\})?", " "),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (
            r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal)?|math(?:rm|bf|it|sf|tt|bb|cal)|[mh]box|operatorname|boldsymbol|bm"
            r"|underline|emph|boxed|fbox|left|right|displaystyle|textstyle|[bB]ig|[lL]arge|LARGE|[hH]uge|rm|bf|it|sf|tt"
            r")(?![a-zA-Z])",
            "",
        ),
        (r"\\q?quad(?![a-zA-Z])|\\[,;:> ~!]|\\\\|~", " "),
        (r"\\([%&#_$])", r"\1"),
        (r"\\[()\[\]{}]|[{}$*`\"“”]|__", ""),
        (r"[\u2600-\u27BF\u2B00-\u2BFF\U0001F000-\U0001FAFF\uFE0F]", ""),  # emoji
        (r"[‐-―−]", "-"),
        (r"[‘’]", "'"),
        (r"\s+", " "),
    )
)
_ENDS: Final = " .,;:!'"
_ARTICLE: Final = re.compile(r"(?:the|an?)\s+(?=\w)")
LABEL: Final = r"([^\W_]{1,12}(?!\w))"
"""What may be a label, as a group."""
_LABEL: Final = re.compile(rf"[ '<]*([(\[]*) ?{LABEL}((?: ?[)\]]+)?)['>]?")
_ONLY_ENDS: Final = re.compile(r"[ .,;:!')\]]*")
_OWN_LABEL: Final = re.compile(rf"[(\[]?{LABEL}[)\].:](?=\s|$)\s*")
_LEAD: Final = re.compile(
    r"(?:(?:(?:so|thus|therefore|hence|then|indeed|actually|simply|just|clearly|obviously|probably|likely|most likely"
    r"|definitely|certainly|still|again|in fact|of course|the|my|final|correct|best|right|most appropriate|answers?|ans"
    r"|options?|choices?|letter|response|number|statement|is|are|would be|be|given by|either|both)\b(?!')"
    r"|option(?=[0-9]))[ ,:=#_-]*)+",
    re.IGNORECASE,
)
_NEXT_LABEL: Final = re.compile(
    r"(?:[,;/&+|-]|\b(?:or|and|nor|to|possibly|maybe|perhaps|also|option|choice)\b| )+"
    rf" ?[(\[]*{LABEL}[)\]]*(?= ?(?:$|[.,;:!?/&]|(?:or|and)\b))",
    re.IGNORECASE,
)
_SEPARATES: Final = re.compile(r"[.;,!](?= |$)|:| ?[(\[]| -+>? | ?[→⇒]")
_GOES_ON: Final = re.compile(
    r" (?:because|since|as|which|due|given|based|with|for|in|by|on|and|but|not|rather|instead|where|when|that"
    r"|according|followed|here|is|was|however|though|although|so"
    r"|explanation|reason(?:ing)?|rationale|justification|confidence)\b",
    re.IGNORECASE,
)
_GIVES_REASON: Final = re.compile(r" (?:because|since)\b", re.IGNORECASE)
_TEXT_ENDS: Final = re.compile(
    r"$| ?[.,;:!)]+(?= |$)| ?[(\[]| -+ | (?:because|since|as|which|due|given|based|not|and not|rather|or|and)\b"
)
_IN_BRACKETS: Final = re.compile(rf"[ .,;:]*[(\[]{LABEL}[)\]]")
_SEPARATOR: Final = re.compile(r"[ .,;:!)\]/|]*(?:(?:-+>?|=+>?|[→⇒])(?= ))? *")
_A_LABEL: Final = re.compile(LABEL)
_ALONE: Final = re.compile(rf"[(\[]*{LABEL}[)\]]*[ .,;:!]*$")
_AND: Final = re.compile(r" (?:or|and)\b")
_JOINS: Final = re.compile(r" ?(?:,? (?:or|and)\b|[,/&;]) ?(?:also |possibly |option |choice )?")
_DENIES: Final = re.compile(
    r" ?(?:\?|isn't\b|wasn't\b|can't\b|cannot\b|can not\b|doesn't\b|does not\b|fails\b|(?:is|was|are|would be|seems?"
    r"|looks) (?:\w+ )?(?:not|incorrect|invalid|wrong|false|un\w+|im\w+|ruled|eliminated|excluded|out)\b)",
    re.IGNORECASE,
)
_OTHERS_DENIED: Final = re.compile(r"[^.]{0,80}\b(?:incorrect|wrong|false|not|excluded|eliminated|ruled)\b")


@dataclass(frozen=True, slots=True)
class Named:
    """What an answer names. `label` is None where that is no option of the row, or more than one."""

    label: str | None
    shown: str
    detail: str | None = None


def tidy(text: str) -> str:
    """Return a short text without fonts, math signs and line breaks; letters keep their case."""
    # First, because NFKC would make 10² into 102.
    text = _SUPERSCRIPTS.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), text)
    text = ascii_digits(unicodedata.normalize("NFKC", text))
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.strip()


class Row:
    """Labels and options of one question.

    Args:
        options: As many as labels, or none where only the labels are known. Where all of them begin with their own
            label, as in "C. text", that is no part of the text.

    Raises:
        DataError: They do not fit each other.
    """

    def __init__(self, labels: tuple[str, ...], options: tuple[str, ...]) -> None:
        if not labels:
            raise DataError("a multiple-choice question has no labels; expected some such as 'A', 'B', 'C', 'D'")
        self.labels = labels
        self._by_label = {_label_key(label): label for label in labels}
        for label in labels:
            if not _A_LABEL.fullmatch(label) or unicodedata.normalize("NFKC", label) != label:
                raise DataError(f"label {label[:60]!r} is no letter, number or short word, such as 'A' or '1'")
        if len(self._by_label) != len(labels):
            raise DataError(f"labels {labels} are not all different; each option needs a label of its own")
        if options and len(options) != len(labels):
            raise DataError(f"there are {len(options)} options for {len(labels)} labels {labels}")
        self.options = _without_labels(labels, options)
        # Letters differ by case only where options do, as genotypes do.
        keys = [_key(option, str.casefold) for option in self.options]
        self._fold = str.casefold if len(set(keys)) == len(keys) else str
        self._texts = [_key(option, self._fold) for option in self.options]
        self._by_text: dict[str, str | None] = {}
        for label, text in zip(labels, self._texts, strict=False):
            self._by_text[text] = None if text in self._by_text else label

    def resolve(self, target: str) -> str:
        """Return the label of a target.

        Raises:
            DataError: The target is neither a label nor the text of exactly one option.
        """
        if target in self.labels:
            return target
        pairs = list(zip(self.labels, self.options, self._texts, strict=False))
        key = _key(_without_label(target, self.labels), self._fold)
        named = [label for label, option, _ in pairs if option.strip() == target.strip()]
        named = named or [label for label, _, text in pairs if text == key != ""]
        if len(named) > 1:
            raise DataError(f"target {target[:60]!r} is the text of more than one option: {', '.join(named)}")
        if named:
            return named[0]
        if (label := self._by_label.get(_label_key(target.strip()))) is not None:
            return label
        expected = f"one of the labels {', '.join(self.labels)}" + (" or the text of an option" if self.options else "")
        raise DataError(f"target {target[:60]!r} names no option; expected {expected}")

    def read(self, text: str, *, in_prose: bool) -> Named | None:
        """Return what a box or the words after a marker name; None where that is no option.

        Args:
            in_prose: The text may go on after the option, and a letter may be a word. Otherwise it is all answer.
        """
        parts = _with_and_without_lead(tidy(text))
        for part in parts:
            if named := self._exactly(part) or self._text_first(part, 3) or self._label_first(part, in_prose):
                return named
        for part in parts:
            if named := self._text_first(part, 1) or (None if in_prose else self._foreign_first(part)):
                return named
        return None if in_prose else self._in_another_notation(text)

    def label_of(self, token: str) -> str | None:
        """Return the label that is written so, in either case."""
        return self._by_label.get(_label_key(token))

    def strictly(self, text: str, *, with_text: bool) -> str | None:
        """Return the label of ``C``, ``(C)`` or ``Option C``; None for everything else.

        Args:
            with_text: ``C. its own text`` is taken as well.
        """
        for part in _with_and_without_lead(tidy(text)):
            found = _LABEL.match(part)
            if found is None or (label := self.label_of(found[2])) is None:
                continue
            rest = part[found.end() :]
            after_text = self._after_own_text(rest, label) if with_text else None
            if _ONLY_ENDS.fullmatch(rest if after_text is None else after_text):
                return label
        return None

    def label_that_begins(self, text: str) -> str | None:
        """Return the label a line begins with, as a list of options does."""
        found = _LABEL.match(tidy(text[:60]))
        return None if found is None else self.label_of(found[2])

    def text_alone(self, text: str) -> str | None:
        """Return the label of the option whose text this is, and nothing else."""
        return self._by_text.get(_key(text, self._fold))

    def follows_own_text(self, before: str, label: str) -> bool:
        """Tell whether a text ends in the words of an option, of three letters or more."""
        own, words = self._text_of(label), self._fold(tidy(before)).rstrip(" (:,")
        return len(own) > 2 and words.endswith(own) and not words[: -len(own)][-1:].isalnum()

    def _text_of(self, label: str) -> str:
        return self._texts[self.labels.index(label)] if self.options else ""

    def _exactly(self, shown: str) -> Named | None:
        """Read a text that is only a label, or only the text of one option."""
        found = _LABEL.match(shown)
        alone = found is not None and _ONLY_ENDS.fullmatch(shown, found.end()) is not None
        token = found[2] if found is not None and alone else ""
        if (label := self.label_of(token)) is not None:
            return Named(label, label)
        key = self._fold(shown).strip(_ENDS)
        inner = key[1:-1].strip(_ENDS) if key[:1] + key[-1:] in ("()", "[]") else key
        if (label := self._by_text.get(key) or self._by_text.get(inner)) is not None:
            return Named(label, label)
        return self._foreign(token) if len(token) == 1 or token.isdecimal() else None

    def _text_first(self, shown: str, shortest: int) -> Named | None:
        """Read the text of an option that something else may follow."""
        folded = self._fold(shown)
        if (label := self._text_that_begins(folded, shortest)) is None:
            return None
        rest = folded[len(self._text_of(label)) :]
        in_brackets = _IN_BRACKETS.match(rest)
        other = self.label_of(in_brackets[1]) if in_brackets else self._joined(rest, label)
        if other is not None and other != label:
            return _several(shown, label, other)
        return None if _AND.match(rest) else Named(label, label)

    def _label_first(self, shown: str, in_prose: bool) -> Named | None:
        """Read ``C. text``, ``(C) because ...`` and their like."""
        found = _LABEL.match(shown)
        if found is None or (label := self.label_of(found[2])) is None:
            return None
        rest = shown[found.end() :]
        after_text = self._after_own_text(rest, label)
        if after_text is None and _DENIES.match(rest):
            return None
        if after_text is not None:
            other = self._joined(after_text, label) or self._other_text(rest, label)
        else:
            other = self._other_label(rest, label, in_prose) or self._other_text(rest, label)
        if other is not None:
            return _several(shown, label, other)
        is_named = after_text is not None or self._is_label(shown, found)
        return Named(label, label) if is_named else None

    def _is_label(self, shown: str, found: re.Match[str]) -> bool:
        """Tell whether what follows the first word of a text lets it be a label."""
        rest = shown[found.end() :]
        if any(option.startswith(self._fold(shown).strip(_ENDS)) for option in self._texts):
            return False  # the beginning of "E. coli O157" is no E
        if _SEPARATES.match(rest) or (found[3] and not rest[:1].isalnum()):
            return True
        is_word = found[2].islower() and not found[1]
        return (_GIVES_REASON if is_word else _GOES_ON).match(rest) is not None

    def _foreign_first(self, shown: str) -> Named | None:
        """Read a letter that would be a label if the row had it."""
        found = _LABEL.match(shown)
        if found is None or len(found[2]) > 1 or not (found[2].isupper() or found[3]):
            return None
        return self._foreign(found[2]) if _SEPARATES.match(shown, found.end()) else None

    def _foreign(self, token: str) -> Named:
        return Named(None, token, f"{token} is none of the labels {', '.join(self.labels)}")

    def _after_own_text(self, rest: str, label: str) -> str | None:
        """Return what follows a label and the text of its option; None where that does not follow the label."""
        own = self._text_of(label)
        for text in self._behind_separator(rest):
            if own and text.startswith(own) and not text[len(own) : len(own) + 1].isalnum():
                return text[len(own) :]
        return None

    def _other_text(self, rest: str, label: str) -> str | None:
        """Return the label of another option whose text follows a label."""
        for text in self._behind_separator(rest):
            if (other := self._text_that_begins(text)) is not None:
                return None if other == label else other
        return None

    def _behind_separator(self, rest: str) -> tuple[str, ...]:
        """Return what follows a label and a separator, as it stands and without the sign it may begin with."""
        separator = _SEPARATOR.match(rest)
        text = self._fold(rest[separator.end() :] if separator else rest)
        return (text, text[1:].lstrip()) if text[:1] in ("(", "[", "-", "'") else (text,)

    def _joined(self, rest: str, label: str) -> str | None:
        """Return another option that follows one as its equal, as in "or D"."""
        found = _JOINS.match(rest)
        if found is None:
            return None
        token = _LABEL.match(rest, found.end())
        if token is not None and (other := self.label_of(token[2])) not in (None, label):
            return other if _TEXT_ENDS.match(rest, token.end()) else None
        other = self._text_that_begins(rest[found.end() :])
        return None if other == label else other

    def _text_that_begins(self, folded: str, shortest: int = 1) -> str | None:
        """Return the label of the longest option text that a folded text begins with, as a whole phrase."""
        best = ""
        for text in self._by_text:
            if len(text) >= max(len(best) + 1, shortest) and folded.startswith(text):
                best = text if _TEXT_ENDS.match(folded, len(text)) else best
        return self._by_text[best] if best else None

    def _other_label(self, rest: str, label: str, in_prose: bool) -> str | None:
        """Return a second label that follows the first one as its equal."""
        rest = rest if in_prose else rest.lstrip(".:) ")
        found = _NEXT_LABEL.match(rest) or (None if in_prose else _ALONE.match(rest))
        other = None if found is None else self.label_of(found[1])
        if found is None or other is None or other == label:
            return None
        return None if in_prose and _OTHERS_DENIED.match(rest, found.end()) else other

    def _in_another_notation(self, text: str) -> Named | None:
        key = _loose_key(text)
        labels = [label for label, option in zip(self.labels, self.options, strict=False) if _loose_key(option) == key]
        return Named(labels[0], labels[0]) if key and len(labels) == 1 else None


def _label_key(label: str) -> str:
    return ascii_digits(label).casefold()


def _several(shown: str, label: str, other: str) -> Named:
    return Named(None, shown[: _latex.LONGEST], f"names more than one option: {label} and {other}")


def _key(text: str, fold: Callable[[str], str]) -> str:
    """Return what the spellings of one option share."""
    shown = fold(tidy(text))
    return shown.strip(_ENDS) or shown


def _loose_key(text: str) -> str:
    """Return what one option shares with other notations of its formula, and with itself after an article."""
    shown = _latex.plain(text[: _latex.LONGEST]) + text[_latex.LONGEST :]
    return re.sub(r"[\s{}()_]+", "", _ARTICLE.sub("", _key(shown, str.casefold), count=1))


def _with_and_without_lead(shown: str) -> tuple[str, ...]:
    """Return a text, and the part after words such as "the answer is"."""
    lead = _LEAD.match(shown)
    return (shown,) if lead is None else (shown, shown[lead.end() :])


def _without_label(text: str, labels: tuple[str, ...]) -> str:
    """Return an option without the label it may begin with."""
    found = _OWN_LABEL.match(text.strip())
    return text.strip()[found.end() :] if found and found[1] in labels else text


def _without_labels(labels: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    begun = [_OWN_LABEL.match(option.strip()) for option in options]
    if any(found is None or found[1] != label for found, label in zip(begun, labels, strict=False)):
        return options
    return tuple(option.strip()[found.end() :] for option, found in zip(options, begun, strict=True) if found)
