"""What models think is told from what they answer, by the marks of every model and however the text was cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentmas.samples import FinishReason, Record, Verdict
from latentmas.scorers.number import grade
from latentmas.thinking import KEPT, MARKS, answer_part, opens_thought

SPOKEN = ("Here",)
PAIRS = [marks for marks in MARKS if not marks.opens.startswith(SPOKEN)]
HARMONY = "<|channel|>analysis<|message|>maybe 24<|end|><|start|>assistant<|channel|>final<|message|>"

SPLIT = [
    # the channels of gpt-oss, as they are and as they look without special tokens
    (HARMONY + "It is 18.<|return|>", "It is 18."),
    ("maybe 24<|end|><|start|>assistant<|channel|>final<|message|>It is 18.", "It is 18."),
    ("<|channel|>commentary<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>18<|end|>", "18"),
    ("<|channel|>final <|constrain|>json<|message|>18", "18"),
    (HARMONY + "18<|return|><|start|>user<|message|>Q<|end|><|start|>assistant<|channel|>final<|message|>7", "18"),
    ("analysisWe think 24.assistantfinalIt is 18.", "It is 18."),
    ("analysisok 24 assistantcommentaryThe plan.assistantfinal18", "18"),
    ("We think 24.assistantfinal18", "18"),
    ("analysis\nWe think 24.\nassistantfinal\n18", "\n18"),
    ("finalIt is 18.", "It is 18."),
    ("to=self<|message|>24<|eom|><|start|>assistant to=user<|message|>18<|eot|>", "18"),
    # a thought the prompt had opened
    ("maybe 24[/THINK]18", "18"),
    ("```\nf = 1\n```[/THINK]```\nf = 2\n```", "```\nf = 2\n```"),
    ("analysis```\nf = 1\n```assistantfinal```\nf = 2\n```", "```\nf = 2\n```"),
    ("maybe 24</think>18", "18"),
    ("thought\nmaybe 24<unused95>18", "18"),
    ("maybe 24\n[BEGIN FINAL RESPONSE]\n18", "\n18"),
    # a record says so by <think>, whatever the mark was
    ("<think>maybe 24[/THINK]18", "18"),
    ("<think>maybe 24<|END_THINKING|>18", "18"),
    ("<think>maybe 24<|end|><|start|>assistant<|channel|>final<|message|>18", "18"),
    # more than one, and one in another
    ("[THINK]a[/THINK]b[THINK]c[/THINK]18", "18"),
    ("[THINK]a <thought> b[/THINK]18", "18"),
    ("<think>a<think>b</think>c 24</think>18", "18"),
    ("[THINK]a<thinking>b</thinking>c[/THINK]18", "18"),
    ("<ifm|think_fast>24</ifm|think_faster>18", "18"),
    ("Okay. [THINK]24[/THINK]18", "18"),
    ("Here is my thought process: 24. Here is my response: 18", " 18"),
    ("Here are my reasoning steps:\n24\n[BEGIN FINAL RESPONSE]\n18", "\n18"),
    ("<|think|>24<|end|><|begin|>assistant<|content|>18", "18"),
]
CUT = [
    "<think>maybe \\boxed{18}",
    "<think>a</think>18\n<think>b",
    "<think>a<thinking>b</thinking>c",
    "[THINK]a<thinking>b</thinking>c",
    "<think>a[/THINK]18\n[THINK]b",
    '<think>I may close it by "[/THINK]" later',
    "[THINK]a[/THINK]18\n[THINK]b",
    "<|channel|>analysis<|message|>maybe \\boxed{18}",
    "<|channel|>analysis<|message|>maybe 18<|end|><|start|>assistant",
    "<|channel|>analysis<|message|>24<|end|><|start|>assistant<|channel|>commentary<|message|>18",
    "maybe 18<|end|><|start|>assistant",
    "analysisWe think maybe \\boxed{18}",
    "analysis\nWe think maybe \\boxed{18}",
    "analysisWe think 24.assistantcommentaryThe plan is 18",
]
WHOLE = [
    "The answer is 18.",
    "18. I thought between [THINK] and [/THINK].",
    "18. Tags such as `<thinking>` and `</thinking>` help.",
    "18 (the [/THINK] tag is left out)",
    "18, and '</reasoning>' closes it",
    "analysis of 18 eggs",
    "Analysis: 18",
    "finally 18",
    "Here is my thought process: 9 * 2 = 18",
    "Here are my reasoning steps:\n9 * 2 = 18",
    'The text "assistantfinal" of 18',
    "```python\nTAGS = ('<thinking>', '</thinking>')\n```",
    '```python\nPROMPT = """\n<reasoning>\nsteps\n</reasoning>\n"""\n```',
]


@pytest.mark.parametrize("marks", PAIRS, ids=lambda marks: marks.opens)
@pytest.mark.parametrize("text", ["{opens}maybe 24{closes}It is 18.", "{opens}\nmaybe 24\n{closes}\n\nIt is 18."])
def test_a_thought_in_any_marks_is_not_graded(marks, text) -> None:
    text = text.format(opens=marks.opens, closes=marks.closes)
    assert (answer_part(text) or "").strip() == "It is 18."
    assert grade(text, "18", FinishReason.LENGTH).verdict is Verdict.NO_ANSWER
    assert grade(text, "18", FinishReason.STOP).verdict is Verdict.CORRECT


@pytest.mark.parametrize("marks", PAIRS, ids=lambda marks: marks.opens)
def test_a_thought_that_was_cut_is_no_answer(marks) -> None:
    assert answer_part(f"{marks.opens}\nThe answer is 18, \\boxed{{18}}") is None


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.opens)
def test_a_prompt_that_ends_in_an_opening_mark_opens_a_thought(marks) -> None:
    assert opens_thought(f"<|im_start|>assistant\n{marks.opens}\n")
    assert not opens_thought(f"<|im_start|>assistant\n{marks.opens}\n\n{marks.closes}\n\n")


@pytest.mark.parametrize(("text", "answer"), SPLIT)
def test_the_answer_is_what_follows_the_last_thought(text: str, answer: str) -> None:
    assert answer_part(text) == answer


@pytest.mark.parametrize("text", CUT)
def test_a_text_that_ends_inside_of_a_thought_has_no_answer(text: str) -> None:
    assert answer_part(text) is None


def test_a_text_that_begins_with_words_of_thinking_and_was_cut_is_no_answer() -> None:
    text = "Here is my thought process: it may be \\boxed{18}"
    assert answer_part(text, cut=True) is None
    assert answer_part(text) == text  # another model that only says so, and came to its end
    assert answer_part(f"{text}\n\nHere is my response: 7", cut=True) == " 7"


@pytest.mark.parametrize("tag", ["Think", "THINK", "Thinking", "THOUGHT", "Reasoning"])
def test_tags_of_thinking_may_be_in_capitals(tag: str) -> None:
    assert answer_part(f"<{tag}>maybe 24</{tag}>It is 18.") == "It is 18."
    assert answer_part(f"<{tag}>maybe 24") is None


@pytest.mark.parametrize("text", WHOLE)
def test_a_mark_that_is_only_spoken_of_cuts_nothing_off(text: str) -> None:
    assert answer_part(text) == text


@pytest.mark.parametrize("closes", ["</think>", "[/THINK]", "<|END_THINKING|>", "<channel|>"])
def test_a_record_whose_prompt_opened_a_thought_is_graded_by_what_follows_it(closes: str) -> None:
    record = Record(
        id="a",
        question="?",
        target="18",
        prediction=None,
        verdict=None,
        found_by=None,
        text=f"maybe \\boxed{{24}}{closes}It is \\boxed{{18}}.",
        finish_reason=FinishReason.STOP,
        error=None,
        donor=None,
        agents=(),
        in_thought=True,
    )
    answer, sample = record.answered()
    assert grade(answer.text, sample.target, answer.finish_reason).verdict is Verdict.CORRECT
    cut = record.model_copy(update={"text": "maybe \\boxed{18}"}).answered()[0]
    assert grade(cut.text, "18", FinishReason.STOP).verdict is Verdict.NO_ANSWER


def test_decoding_keeps_every_mark() -> None:
    assert {mark for marks in MARKS for mark in (marks.opens, marks.closes)} <= KEPT
    assert {"<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"} <= KEPT


PIECES = [mark for marks in MARKS for mark in (marks.opens, marks.closes)] + [
    "<|channel|>",
    "<|message|>",
    "<|end|><|start|>assistant",
    "assistantfinal",
    "analysis",
    "```\n",
    "\n",
    " 18 ",
    "`",
    ".",
    "the ",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@settings(deadline=None)
def test_the_answer_is_the_end_or_a_message_of_the_text(text: str) -> None:
    answer = answer_part(text)
    assert answer is None or answer in text
    if answer is not None and "<think>" in text and "assistant" not in text and "<|channel|>" not in text:
        assert text.endswith(answer)


@pytest.mark.parametrize(
    "piece",
    [
        *["<think>", "[/THINK]", "[THINK]<thinking>", "<ifm|think>[/THINK]", "a <thinking> ", "</thinking>.", "```\n"],
        *["<|channel|>final ", "<|channel|>final<|message|>", "<|end|><|start|>assistant", "assistantfinal", " ", "\n"],
    ],
)
def test_no_heap_of_marks_takes_long(piece: str) -> None:
    text = piece * (300_000 // len(piece))
    seconds = []
    while len(seconds) < 3 and min(seconds, default=9) > 1:  # a busy machine only adds
        begin = time.perf_counter()
        answer_part(text)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1
