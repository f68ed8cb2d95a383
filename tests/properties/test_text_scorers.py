"""Laws of every scorer that reads prose: no text makes it raise, no text takes long, a cut text is not guessed at."""

from __future__ import annotations

import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.samples import FinishReason, Score, Verdict
from latentmas.scorers import choice, number
from latentmas.scorers._code_limits import calibration_seconds

ORDINARY_CALIBRATION = 0.0046
"""What `calibration_seconds` returned where the limits below were set."""
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
LETTERS = ("A", "B", "C", "D")
CANCER = ("Hemolytic uremic syndrome", "Oral ulcers", "Colorectal cancer", "$\\frac{1}{2}$ of \\textbf{E. coli}")
# A text and its finish reason; everything else is fixed.
GRADERS = {
    "number": partial(number.grade, target="18"),
    "choice": partial(choice.grade, target="C", labels=LETTERS, options=CANCER),
    "choice of labels": partial(choice.grade, target="C", labels=LETTERS),
    "choice of digits": partial(choice.grade, target="2", labels=("1", "2"), options=("2", "1")),
}

FRAGMENTS = (
    *"0123456789.,-+*/^=(){}[]\\$%e# \nabxC½²⁄−±√~'_５Ｃ<>|?!:;`\u0301\ud800",
    "\\boxed{",
    "\\frac{",
    "\\sqrt{",
    "\\over",
    "\\text{",
    "\\textbf{",
    "answer is ",
    "Answer:",
    "Option ",
    "I choose ",
    " is the correct answer",
    " is correct. ",
    "#### ",
    "**",
    "**C**",
    "(C)",
    "C. Colorectal cancer",
    "Colorectal cancer",
    "E. coli",
    "<answer>",
    "\\,",
    "{,}",
    "\\times 10^",
    " million",
    "twenty-one",
    " and ",
    " or ",
    " not ",
    "<think>",
    "</think>",
)
REPEATED = (
    *FRAGMENTS,
    "\\boxed",
    "\\boxed ",
    "\\boxed{}",
    "\\boxed{ }",
    "\\boxed{1}",
    "\\boxed{C}",
    "\\boxed{{",
    "1,",
    "1 ",
    "1/",
    "1e",
    "^2",
    "m2",
    "√(",
    "one hundred ",
    "answer",
    "answer ",
    "answer to ",
    "answer of the ",
    "answer\n",
    "answer is 1 ",
    "answer is (",
    "answer is C or ",
    "answer is not 1 ",
    "answer:1;",
    "I choose A or B ",
    "if the answer is ",
    "#### 1 ",
    "#### (",
    "**C",
    "*C",
    "__C__ ",
    "**A**, **B** ",
    "vitamin **C** ",
    "<b>C</b>",
    "A\n",
    "A. B. ",
    "- ",
    "\u0301\u0323",
)

HARDEST = ("\\boxed{", "\\boxed{ }", "**", "(", "####", "\\frac{", "9", "answer is ", "answer to ", "Option ", "A\n")
WORDS = ("A", "a", "C", "I", "B", "planet", "vitamin", "reactive", "-", "is", "of", ",", ".", "was", "the", "in")


def shapes(fragment, size):
    """Texts of `size` characters out of a fragment: bare, where an answer is looked for, in lines, between markers."""
    text = fragment * (size // len(fragment))
    yield text
    yield f"\\boxed{{{text}}}"
    yield f"answer is {text}"
    yield f"**{text}**"
    yield f"{text} is the correct answer"
    line = fragment * 20
    yield f"{line}\n" * (size // (len(line) + 1))
    yield f"{line}answer is " * (size // (len(line) + 10))


@pytest.mark.parametrize("grader", GRADERS)
@given(text=st.one_of(st.text(max_size=300), st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join)))
def test_no_text_makes_a_scorer_raise(grader, text):
    for shown in (text, f"\\boxed{{{text}}}", f"The answer is {text}", f"#### {text}", f"**{text}**"):
        for finish_reason in FinishReason:
            graded = GRADERS[grader](shown, finish_reason=finish_reason)
            assert isinstance(graded, Score)
            assert (graded.verdict is Verdict.NO_ANSWER) == (graded.found_by is None) == (graded.prediction is None)
            assert len(graded.prediction or "") <= 400


@pytest.mark.parametrize("grader", GRADERS)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join))
def test_a_cut_text_has_an_answer_only_in_a_box_or_behind_a_marker(grader, text):
    graded = GRADERS[grader](text, finish_reason=LENGTH)
    assert graded.found_by in {"box", "marker", None}
    if graded.found_by is not None:
        assert graded == GRADERS[grader](text, finish_reason=STOP)


@pytest.mark.parametrize("grader", GRADERS)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join))
def test_thoughts_are_not_graded(grader, text):
    grade = partial(GRADERS[grader], finish_reason=STOP)
    said = text.replace("<think>", "").replace("</think>", "")
    assert grade(f"<think>\\boxed{{18}} \\boxed{{C}} \\boxed{{2}} the answer is C</think>{said}") == grade(said)
    assert grade(f"{said}<think>\\boxed{{18}} \\boxed{{C}} \\boxed{{2}}").verdict is Verdict.NO_ANSWER


@given(
    label=st.sampled_from(LETTERS),
    target=st.sampled_from(LETTERS),
    font=st.sampled_from(["{}", r"\text{{{}}}", r"\mathrm{{{}}}", r"\textbf{{{}}}", "${}$", "**{}**", " {} "]),
    form=st.sampled_from(["{}", "({})", "{}.", "{})", "[{}]", "Option {}", "Answer: {}", "{}. {text}", "({}) {text}"]),
    frame=st.sampled_from(["\\boxed{{{}}}", "The answer is {}", "**Answer:** {}\n\nSo it is."]),
)
def test_a_label_is_found_in_any_clothes(label, target, font, form, frame):
    worn = frame.format(font.format(form.format(label, text=CANCER[LETTERS.index(label)])))
    graded = choice.grade(worn, target, STOP, LETTERS, CANCER)
    assert graded.prediction == label
    assert graded.verdict is (Verdict.CORRECT if label == target else Verdict.WRONG)


@given(labels=st.permutations(LETTERS), options=st.permutations(CANCER), data=st.data())
def test_the_text_of_an_option_is_its_label(labels, options, data):
    at = data.draw(st.integers(0, 3))
    for target in (labels[at], options[at], f"{labels[at]}. {options[at]}"):
        for text in (f"\\boxed{{{options[at]}}}", f"The answer is {options[at]}."):
            graded = choice.grade(text, target, STOP, tuple(labels), tuple(options))
            assert (graded.prediction, graded.verdict) == (labels[at], Verdict.CORRECT)


@given(words=st.lists(st.sampled_from(WORDS), max_size=30))
def test_a_letter_in_prose_is_no_answer(words):
    text = f"We know {' '.join(words)} protein level."
    assert choice.grade(text, "A", STOP, LETTERS, CANCER).verdict is Verdict.NO_ANSWER


def check_time(grader, texts, seconds):
    """Seconds are those of an ordinary machine; a slow or busy one gets as many more as a fixed piece of work takes.

    The least of three tries counts: what else a machine does only adds to it.
    """
    for text in texts:
        tries = (seconds_of(grader, text) for _ in range(3))
        assert any(taken < seconds or taken < seconds * slowness() for taken in tries), text[:40]


def seconds_of(grader, text):
    began = time.process_time()
    GRADERS[grader](text, finish_reason=STOP)
    return time.process_time() - began


def slowness():
    return max(1.0, calibration_seconds() / ORDINARY_CALIBRATION)


@pytest.mark.parametrize("grader", ["number", "choice"])
def test_long_texts_take_linear_time(grader):
    """20 kB: what takes quadratic time needs seconds for that."""
    check_time(grader, [text for fragment in REPEATED for text in (*shapes(fragment, 20_000),)[:3]], seconds=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("grader", ["number", "choice"])
def test_long_texts_of_every_shape_take_linear_time(grader):
    check_time(grader, (text for fragment in REPEATED for text in shapes(fragment, 100_000)), seconds=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize("fragment", HARDEST)
def test_a_text_of_a_megabyte_takes_less_than_a_second(grader, fragment):
    check_time(grader, shapes(fragment, 1_000_000), seconds=1)


@pytest.mark.slow
@pytest.mark.parametrize("grader", GRADERS)
def test_a_megabyte_of_signs_or_nested_boxes_takes_less_than_a_second(grader):
    size = 1_000_000
    texts = ["1" + "-" * size, "\\boxed{" * (size // 8) + "1" + "}" * (size // 8), "\\boxed{" + "{" * size + "}" * size]
    check_time(grader, texts, seconds=1)
