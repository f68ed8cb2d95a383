"""Short answers as models write them, in LaTeX, Markdown or prose, to one plain form and its exact value.

`plain` undoes the notation, `value` reads the one number that is left, `spelled_value` one that is all words. Callers
pass at most `LONGEST` characters, so nothing here can be slow.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from math import isqrt
from typing import Final

from latentmas.scorers._text import ascii_digits

LONGEST: Final = 400
"""Characters of an answer that are looked at; a longer one is no number."""
MOST_DIGITS: Final = 400
"""Digits a value may have. int() refuses 4300, and arithmetic is slow long before."""

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# Applied in this order, once each.
_REWRITES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u2010-\u2013\u2212\uFE63\uFF0D]", "-"),
        (r"[\u2600-\u2775\u2794-\u27BF\u2B50\uFE0F\u200D\U0001F300-\U0001FAFF]", ""),  # emoji
        (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPT)),
        (r"(?<=[0-9])(?=[¼½¾⅐-⅞])", " "),
        (r"(?<=[0-9])(?:[\u00A0\u2009\u202F]|\{?\\[,;: ]\}?)(?=[0-9]{3}(?![0-9]))", ""),  # grouping
    )
)
# Decimal commas: behind thousands with dots, or in braces where it cannot be grouping.
_DECIMALS: Final = re.compile(r"(?<![0-9.,}])([0-9]{1,3}(?:\.[0-9]{3})+),([0-9]{1,2})(?![0-9,]|\.[0-9])")
_IN_BRACES: Final = re.compile(
    r"(?<![0-9.,}])(0(?=\{,\}[0-9])|[0-9]+(?=\{,\}[0-9]{1,2}(?![0-9{,.])))\{,\}",
)
_LATEX: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"⁄", "/"),
        (r"\\(?:begin|end)\{[a-z]{1,12}\*?\}(?:\{[clr| ]{1,9}\})?|\\\\\s*$", ""),
        (r"\\\\", r"\\"),  # an answer that was escaped once more, as in JSON
        (r"\{,\}", ","),
        (r",\s*\\!", ","),
        (r"\\!", ""),
        (r"\{?\\[,;:> ]\}?|~|\\q?quad(?![a-zA-Z])|\\thinspace", " "),
        (r"\\hspace\*?\{[^{}]*\}", " "),
        (r"\\(?:text)?color\{[^{}]*\}", ""),
        (r"\\(?:left|right|displaystyle|textstyle|[bB]ig|[lL]arge|[hH]uge|rm|bf|it|sf|tt)(?![a-zA-Z])", ""),
        (r"\\[()\[\]]", ""),
        (r"\\?[$€£¥₹₩₽¢]|\\(?:textdollar|pounds|euro)(?![a-zA-Z])", ""),
        (r"\\?%|\\percent", ""),
        (r"\^\s*\{?\s*(?:\\circ|°|\\degree)\s*\}?|\\degree|°", ""),
        (r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·⋅∗]", "*"),
        (r"\\div(?![a-zA-Z])|÷", "/"),
        (r"\\(?:approx|simeq|sim)(?![a-zA-Z])|[≈≃]|:=", "="),
        (r"\\pm(?![a-zA-Z])", "±"),
        (r"(?<=[0-9])\s*\^\s*\{?\s*(?:\\(?:text|textrm|mathrm)\s*\{)?\s*(?:st|nd|rd|th)\b\s*\}?\s*\}?", ""),
        (r"\*\*|__|`", ""),
    )
)
_FONT: Final = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|mathbb|mbox|hbox"
    r"|operatorname|boldsymbol|bm|underline|emph|boxed|fbox|mathord|num)\s*\{([^{}]*)\}"
)
_FRACTION: Final = re.compile(r"\\(?:[dtcs]|nice)?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
_ROOT: Final = re.compile(r"(?:\\sqrt|√)\s*\{([^{}]*)\}")
_OVER: Final = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}|^\s*([-+]?[0-9.]+)\s*\\over\s*([0-9.]+)\s*$")
_GROUPED: Final = re.compile(
    r"(?<![0-9.,'_])(?!0[,'_])[0-9]{1,3}"
    r"(?:(?:,[0-9]{3})+|(?:'[0-9]{3})+|(?:_[0-9]{3})+|(?:\.[0-9]{3}){2,})(?![0-9'_]|,[0-9])"
)
_SPACED: Final = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/])")

_DIGIT: Final = re.compile("[0-9]")
_ALTERNATIVE: Final = re.compile(r"\b(?:or|and|versus|to)\b|[;&±|]|,")
_LABEL: Final = re.compile(r"^\([A-Z]\)\s*")
_START: Final = re.compile(r"[-+(\s√]*\.?[0-9]")
_BEFORE: Final = re.compile(r"(?:[^\W\d_]|[\s():.,'\"?!]|(?<=[^\W\d_])-(?=[^\W\d_]))*")
_SCALE: Final = re.compile(rf"\s*-?({'|'.join(_SCALES)})\b", re.IGNORECASE)
_UNIT_POWER: Final = re.compile(r"(?<=[^\W\d_])\s*(?:\^\s*[({]?\s*-?[0-9]\s*[)}]?|[23]\b)")
_UNITS: Final = re.compile(
    r"(?:-(?=[^\W\d_]{2}))?"
    r"(?:[^\W\d_]|[\s.,:;!?'\"()\[\]#]|(?<=[^\W\d_])-(?=[^\W\d_])|/(?=\s?[^\W\d_]))*"
)
_VARIABLE: Final = re.compile(r"\s*[abceijknopqrtuvwxyzBDEGHIMOPQRSTUXYZπ]\s*")

_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_POWER: Final = re.compile(r"[eE]([+-]?[0-9]+)(?![0-9A-Za-z])")
_EXPONENT: Final = re.compile(r"\s*\^\s*[({]?\s*([+-]?[0-9]+)\s*[)}]?")
_OPERATOR: Final = re.compile(r"\s*([*/])\s*(?=[+-]?\s*[(.0-9])")
_SIGN: Final = re.compile(r"\s*([+-]?)\s*")
_CLOSE: Final = re.compile(r"\s*\)")
_MIXED: Final = re.compile(r"\s*\(\(([0-9]+)\)/\(([0-9]+)\)\)|\s+([0-9]+)\s*/\s*([0-9]+)")

_ONES: Final = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS: Final = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS: Final = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS: Final = {
    **{"a": 1, "an": 1},
    **{word: size for size, word in enumerate([*_ONES, *_TEENS], start=1)},
    **{word: 10 * size for size, word in enumerate(_TENS, start=2)},
}
_SPELLED_SCALES: Final = {"millions": 10**6, "thousands": 10**3, "ones": 1}
_BELOW_HUNDRED: Final = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_ONES)}))?|{'|'.join([*_TEENS, *_ONES])})"
_BELOW_THOUSAND: Final = (
    rf"(?:(?:an?|{'|'.join([*_ONES, *_TEENS])})[- ]hundred(?: (?:and )?{_BELOW_HUNDRED})?|{_BELOW_HUNDRED})"
)
_SPELLED: Final = re.compile(
    rf"(?P<sign>(?:minus|negative) )?(?:zero|(?=[a-z])"
    rf"(?:(?P<millions>{_BELOW_THOUSAND}|an?)[- ]million\b ?(?:and )?)?"
    rf"(?:(?P<thousands>{_BELOW_THOUSAND}|an?)[- ]thousand\b ?(?:and )?)?"
    rf"(?P<ones>{_BELOW_THOUSAND})?)"
)


def plain(text: str) -> str:
    """Return a short text without notation: ``\\frac{a}{b}`` is ``((a)/(b))``, grouping is gone."""
    text = ascii_digits(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = unicodedata.normalize("NFKC", text)
    if "," in text:
        text = _DECIMALS.sub(lambda found: f"{found[1].replace('.', '')}.{found[2]}", text)
        text = _IN_BRACES.sub(r"\1.", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    before = "" if "\\" in text or "√" in text else text
    while before != text:  # innermost first; each round takes at least one command away
        before = text
        text = _FONT.sub(r"\1", text)
        text = _ROOT.sub(r"√(\1)", text)
        text = _OVER.sub(lambda found: f"(({found[1] or found[3]})/({found[2] or found[4]}))", text)
        text = _FRACTION.sub(lambda found: f"(({found[1] or found[2]})/({found[3] or found[4]}))", text)
    return _GROUPED.sub(lambda found: re.sub(r"[,.'_]", "", found[0]), text)


def value(text: str) -> Fraction | None:
    """Return the one value of a plain text; words, units and ``x =`` around it. None if not exactly one."""
    text = _right_side(text)
    start = _START.search(text)
    if start is None or not _introduces(text[: start.start()], start[0]):
        return None
    reader = _Reader(text, start.start())
    found = reader.product()
    if found is None:
        return None
    tail = text[reader.at :]
    if (scale := _SCALE.match(tail)) is not None:
        found, tail = found * _SCALES[scale[1].lower()], tail[scale.end() :]
    tail = _UNIT_POWER.sub("", tail)
    return found if _UNITS.fullmatch(tail) and not _VARIABLE.fullmatch(tail) else None


def spelled_value(text: str) -> int | None:
    """Return the value of a plain text that is a whole number in words and nothing else, up to the millions."""
    found = _SPELLED.fullmatch(" ".join(text.casefold().replace(",", " ").split()).rstrip(".!"))
    if found is None:
        return None
    size = sum(scale * _below_thousand(found[name] or "") for name, scale in _SPELLED_SCALES.items())
    return -size if found["sign"] else size


def _below_thousand(words: str) -> int:
    size = 0
    for word in words.replace("-", " ").split():
        size = (size or 1) * 100 if word == "hundred" else size + _WORDS.get(word, 0)
    return size


def _right_side(text: str) -> str:
    """Return the part with the value, without brackets around it; nothing where there are several values."""
    text = _SPACED.sub(lambda found: found[0].replace(" ", ""), text.strip().rstrip(".,;:!?").strip())
    if text[:1] == "*" == text[-1:]:
        text = text[1:-1].strip()
    if sum(_DIGIT.search(part) is not None for part in _ALTERNATIVE.split(text)) != 1:
        return ""
    # An equation ends in its value; the side that only names it, as in `5 = x`, has no digit.
    text = next(side for side in reversed(text.split("=")) if _DIGIT.search(side)).strip()
    while len(text) > 2 and text[0] + text[-1] in ("()", "[]", "{}") and _closes_at_end(text):
        text = text[1:-1].strip()
    return _LABEL.sub("", text.replace("{", "(").replace("}", ")"))


def _introduces(words: str, start: str) -> bool:
    """Tell whether words before a number leave it alone. `start` begins with its sign and brackets."""
    is_operator = start.lstrip("( ")[0] in "+-" and re.search(r"[\w)]\s*$", words)
    return not is_operator and _BEFORE.fullmatch(words) is not None and not re.search(r"\bnot\b", words)


def _closes_at_end(text: str) -> bool:
    """Tell whether the bracket that opens the text is the one that closes it."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return index == len(text) - 1
    return False


class _Reader:
    """Reads products of numbers, fractions and powers from `at` on; None is what it cannot read."""

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def product(self, depth: int = 0) -> Fraction | None:
        left = self.signed(depth)
        while left is not None:
            operator = _OPERATOR.match(self.text, self.at)
            if operator is None:
                break
            self.at = operator.end()
            right = self.signed(depth)
            if right is None or (operator[1] == "/" and right == 0):
                return None
            left = _bounded(left * right if operator[1] == "*" else left / right)
        return left

    def signed(self, depth: int) -> Fraction | None:
        sign = _SIGN.match(self.text, self.at)
        assert sign is not None
        self.at = sign.end()
        found = self.mixed(depth)
        return -found if found is not None and sign[1] == "-" else found

    def mixed(self, depth: int) -> Fraction | None:
        """Read ``3``, ``3 1/2`` or ``3((1)/(2))``."""
        whole = self.power(depth)
        part = _MIXED.match(self.text, self.at)
        if whole is None or part is None or whole.denominator != 1:
            return whole
        upper, lower = (_integer(part[index] or part[index + 2]) for index in (1, 2))
        if upper is None or not lower or upper >= lower:
            return None
        self.at = part.end()
        return whole + Fraction(upper, lower)

    def power(self, depth: int) -> Fraction | None:
        base = self.root(depth)
        if base is None:
            return None
        found = _EXPONENT.match(self.text, self.at)
        if found is None:
            return base
        self.at = found.end()
        return _raise(base, found[1])

    def root(self, depth: int) -> Fraction | None:
        if not self.text.startswith("√", self.at):
            return self.atom(depth)
        self.at += 1
        return _root(self.root(depth + 1)) if depth <= 40 else None

    def atom(self, depth: int) -> Fraction | None:
        if self.text.startswith("(", self.at):
            if depth > 40:
                return None
            self.at += 1
            inner = self.product(depth + 1)
            close = _CLOSE.match(self.text, self.at)
            if inner is None or close is None:
                return None
            self.at = close.end()
            return inner
        number = _NUMBER.match(self.text, self.at)
        if number is None or len(number[0]) > MOST_DIGITS:
            return None
        self.at = number.end()
        found = Fraction(number[0].rstrip("."))
        if (scientific := _POWER.match(self.text, self.at)) is not None:
            self.at = scientific.end()
            power = _raise(Fraction(10), scientific[1])
            return None if power is None else _bounded(found * power)
        return found


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= MOST_DIGITS else None


def _raise(base: Fraction, exponent: str) -> Fraction | None:
    """Return a power, or None where it would have more digits than a value may have."""
    power = _integer(exponent)
    if power is None or (base == 0 and power <= 0):
        return None
    digits = max(base.numerator.bit_length(), base.denominator.bit_length()) * 0.302 * abs(power)
    return base**power if digits <= MOST_DIGITS else None


def _root(square: Fraction | None) -> Fraction | None:
    """Return the square root where it is exact."""
    if square is None or square < 0:
        return None
    found = Fraction(isqrt(square.numerator), isqrt(square.denominator))
    return found if found**2 == square else None


def _bounded(found: Fraction) -> Fraction | None:
    largest = max(abs(found.numerator), found.denominator)
    return found if largest < 10**MOST_DIGITS else None
