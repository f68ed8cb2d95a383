"""Numbers are found and read in every notation models write them in. A grading bug adds its row before its fix."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentmas.errors import DataError
from latentmas.samples import FinishReason, Verdict
from latentmas.scorers.number import grade, parse_target

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
CORRECT, WRONG, NO_ANSWER = Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER

BOXES = [
    # plain
    (r"\boxed{18}", "18", STOP, CORRECT),
    (r"\boxed{18}", "18", LENGTH, CORRECT),
    (r"\boxed{19}", "18", STOP, WRONG),
    (r"\boxed {18}", "18", STOP, CORRECT),
    (r"\fbox{18}", "18", STOP, CORRECT),
    (r"\\boxed{18}", "18", STOP, CORRECT),
    (r"\boxed{(18)}", "18", STOP, CORRECT),
    (r"\boxed{\left(18\right)}", "18", STOP, CORRECT),
    (r"\boxed{$18$}", "18", STOP, CORRECT),
    (r"\boxed{\(18\)}", "18", STOP, CORRECT),
    (r"\boxed{~18~}", "18", STOP, CORRECT),
    (r"\boxed{+18}", "18", STOP, CORRECT),
    (r"\boxed{.5}", "1/2", STOP, CORRECT),
    (r"\boxed{025}", "25", STOP, CORRECT),
    ("\\boxed{１８}", "18", STOP, CORRECT),
    (r"\boxed{18.00}", "18", STOP, CORRECT),
    (r"\boxed{18.}", "18", STOP, CORRECT),
    (r"\boxed{18,}", "18", STOP, CORRECT),
    # thousands
    (r"\boxed{2,125}", "2125", STOP, CORRECT),
    (r"\boxed{2{,}125}", "2125", STOP, CORRECT),
    (r"\boxed{\$2,\!125}", "2125", STOP, CORRECT),
    (r"\boxed{1\,450\,000}", "1450000", STOP, CORRECT),
    (r"\boxed{1 450 000}", "1450000", STOP, CORRECT),
    (r"\boxed{1'450'000}", "1450000", STOP, CORRECT),
    (r"\boxed{1.450.000}", "1450000", STOP, CORRECT),
    (r"\boxed{1_450_000}", "1450000", STOP, CORRECT),
    (r"\boxed{\$1,450,000.00}", "1450000", STOP, CORRECT),
    (r"\boxed{2,999}", "2", STOP, WRONG),
    (r"\boxed{1,23}", "123", STOP, WRONG),
    (r"\boxed{12,345,67}", "1234567", STOP, WRONG),
    (r"\boxed{0,125}", "125", STOP, WRONG),
    # decimal commas, where they can be nothing else
    (r"\boxed{3{,}5}", "3.5", STOP, CORRECT),
    (r"\boxed{0{,}125}", "1/8", STOP, CORRECT),
    (r"\boxed{1.450,75}", "1450.75", STOP, CORRECT),
    (r"\boxed{1{,}450{,}000}", "1450000", STOP, CORRECT),
    (r"\boxed{3,5}", "3.5", STOP, WRONG),
    (r"\boxed{1.5,25}", "1.525", STOP, WRONG),
    # signs
    (r"\boxed{−18}", "-18", STOP, CORRECT),
    (r"\boxed{–18}", "-18", STOP, CORRECT),
    (r"\boxed{-\$18}", "-18", STOP, CORRECT),
    (r"\boxed{$-18}", "-18", STOP, CORRECT),
    (r"\boxed{-(-3)}", "3", STOP, CORRECT),
    (r"\boxed{18}", "-18", STOP, WRONG),
    # fractions
    (r"\boxed{\frac{1}{2}}", "0.5", STOP, CORRECT),
    (r"\boxed{\dfrac12}", "0.5", STOP, CORRECT),
    (r"\boxed{-\frac{1}{2}}", "-0.5", STOP, CORRECT),
    (r"\boxed{\frac{-9}{3}}", "-3", STOP, CORRECT),
    (r"\boxed{\tfrac{9}{3}}", "3", STOP, CORRECT),
    (r"\boxed{\nicefrac{1}{2}}", "0.5", STOP, CORRECT),
    (r"\boxed{\frac{\frac{1}{2}}{3}}", "1/6", STOP, CORRECT),
    (r"\boxed{\frac{1}{\frac{1}{3}}}", "3", STOP, CORRECT),
    (r"\boxed{1/2}", "0.5", STOP, CORRECT),
    (r"\boxed{{3 \over 4}}", "0.75", STOP, CORRECT),
    (r"\boxed{{1 \over 2} \over 3}", "1/6", STOP, WRONG),
    (r"\boxed{3 \over 4}", "0.75", STOP, CORRECT),
    (r"\boxed{x = {a \over 4}}", "4", STOP, WRONG),
    (r"\boxed{0.333}", "1/3", STOP, WRONG),
    (r"\boxed{3\frac{1}{2}}", "3.5", STOP, CORRECT),
    (r"\boxed{3 1/2}", "7/2", STOP, CORRECT),
    ("\\boxed{3½}", "3.5", STOP, CORRECT),
    ("\\boxed{½}", "0.5", STOP, CORRECT),
    (r"\boxed{1/0}", "18", STOP, WRONG),
    # percent: 50 % is 50
    (r"\boxed{50\%}", "50", STOP, CORRECT),
    (r"\boxed{50 percent}", "50", STOP, CORRECT),
    (r"\boxed{50%}", "0.5", STOP, WRONG),
    (r"\boxed{18\%\text{ of them}}", "18", STOP, CORRECT),
    # powers
    (r"\boxed{1.0\times10^6}", "1000000", STOP, CORRECT),
    (r"\boxed{1.5 \times 10^{6}}", "1500000", STOP, CORRECT),
    (r"\boxed{1.5 \cdot 10^{-3}}", "0.0015", STOP, CORRECT),
    ("\\boxed{1.5·10⁶}", "1500000", STOP, CORRECT),
    (r"\boxed{1e6}", "1000000", STOP, CORRECT),
    (r"\boxed{1.2E-3}", "0.0012", STOP, CORRECT),
    (r"\boxed{10^6}", "1000000", STOP, CORRECT),
    (r"\boxed{2^{10}}", "1024", STOP, CORRECT),
    (r"\boxed{1.5 million}", "1500000", STOP, CORRECT),
    (r"\boxed{\$3\text{ thousand}}", "3000", STOP, CORRECT),
    # roots, where they are exact
    (r"\boxed{\sqrt{49}}", "7", STOP, CORRECT),
    (r"\boxed{-\sqrt{49}}", "-7", STOP, CORRECT),
    (r"\boxed{\sqrt{4900} \text{ cm}}", "70", STOP, CORRECT),
    (r"\boxed{\sqrt{\frac{9}{4}}}", "1.5", STOP, CORRECT),
    (r"\boxed{\frac{\sqrt{49}}{2}}", "3.5", STOP, CORRECT),
    (r"\boxed{\sqrt{\sqrt{16}}}", "2", STOP, CORRECT),
    ("\\boxed{√49}", "7", STOP, CORRECT),
    (r"\boxed{\sqrt{49} = 7}", "7", STOP, CORRECT),
    (r"\boxed{\sqrt{48}}", "48", STOP, WRONG),
    (r"\boxed{\sqrt{48}}", "6", STOP, WRONG),
    (r"\boxed{\sqrt{-49}}", "7", STOP, WRONG),
    (r"\boxed{2\sqrt{49}}", "2", STOP, WRONG),
    (r"\boxed{\sqrt[3]{27}}", "27", STOP, WRONG),
    (r"\boxed{5!}", "5", STOP, WRONG),
    (r"\boxed{5!}", "120", STOP, WRONG),
    # equations
    (r"\boxed{x=5}", "5", STOP, CORRECT),
    (r"\boxed{\$x = 5}", "5", STOP, CORRECT),
    (r"\boxed{f(2)=18}", "18", STOP, CORRECT),
    (r"\boxed{18=x}", "18", STOP, CORRECT),
    (r"\boxed{9 \times 2 = 18}", "18", STOP, CORRECT),
    (r"\boxed{\approx 18}", "18", STOP, CORRECT),
    # two values, or another one
    (r"\boxed{x = 3, y = 5}", "5", STOP, WRONG),
    (r"\boxed{x=3 \text{ or } x=5}", "5", STOP, WRONG),
    (r"\boxed{3, 5}", "5", STOP, WRONG),
    (r"\boxed{3 \text{ and } 5}", "5", STOP, WRONG),
    (r"\boxed{\{3,5\}}", "5", STOP, WRONG),
    (r"\boxed{(3,5)}", "5", STOP, WRONG),
    (r"\boxed{3-5}", "3", STOP, WRONG),
    (r"\boxed{3 \text{ to } 5}", "5", STOP, WRONG),
    (r"\boxed{\pm 5}", "5", STOP, WRONG),
    (r"\boxed{5:30}", "5", STOP, WRONG),
    (r"\boxed{3:4}", "3", STOP, WRONG),
    (r"\boxed{3 \mod 5}", "3", STOP, WRONG),
    (r"\boxed{10+8}", "18", STOP, WRONG),
    (r"\boxed{5 - x}", "5", STOP, WRONG),
    (r"\boxed{5x}", "5", STOP, WRONG),
    (r"\boxed{5\pi}", "5", STOP, WRONG),
    (r"\boxed{\sqrt{25}}", "25", STOP, WRONG),
    (r"\boxed{\text{none}}", "5", STOP, WRONG),
    # units, words and fonts
    (r"\boxed{18 \text{ apples}}", "18", STOP, CORRECT),
    (r"\boxed{18\text{ cm}^2}", "18", STOP, CORRECT),
    (r"\boxed{18\,\mathrm{m}^{2}}", "18", STOP, CORRECT),
    ("\\boxed{18 cm²}", "18", STOP, CORRECT),
    (r"\boxed{18 km/h}", "18", STOP, CORRECT),
    (r"\boxed{18 miles per hour}", "18", STOP, CORRECT),
    (r"\boxed{18 \text{ eggs/day}}", "18", STOP, CORRECT),
    (r"\boxed{18\text{-inch}}", "18", STOP, CORRECT),
    (r"\boxed{18\ \text{hours}}", "18", STOP, CORRECT),
    (r"\boxed{18^{th}}", "18", STOP, CORRECT),
    (r"\boxed{90^\circ}", "90", STOP, CORRECT),
    (r"\boxed{90°}", "90", STOP, CORRECT),
    (r"\boxed{€18}", "18", STOP, CORRECT),
    (r"\boxed{18 USD}", "18", STOP, CORRECT),
    (r"\boxed{USD 18}", "18", STOP, CORRECT),
    (r"\boxed{18 dollars}", "18", STOP, CORRECT),
    (r"\boxed{\text{Janet makes } \$18 \text{ per day}}", "18", STOP, CORRECT),
    (r"\boxed{\text{18}}", "18", STOP, CORRECT),
    (r"\boxed{\mathbf{18}}", "18", STOP, CORRECT),
    (r"\boxed{{\rm 18}}", "18", STOP, CORRECT),
    (r"\boxed{\Large 18}", "18", STOP, CORRECT),
    (r"\boxed{\color{red}{18}}", "18", STOP, CORRECT),
    (r"\boxed{**18**}", "18", STOP, CORRECT),
    (r"\boxed{\textbf{(A) } 116}", "116", STOP, CORRECT),
    (r"\boxed{(A) -5}", "-5", STOP, CORRECT),
    # in words, and nothing else
    (r"\boxed{\text{eighteen}}", "18", STOP, CORRECT),
    (r"\boxed{\textbf{Twenty-one.}}", "21", STOP, CORRECT),
    (r"\boxed{twenty one}", "21", STOP, CORRECT),
    (r"\boxed{zero}", "0", STOP, CORRECT),
    (r"\boxed{\text{minus five}}", "-5", STOP, CORRECT),
    (r"\boxed{a hundred}", "100", STOP, CORRECT),
    (r"\boxed{one hundred and five}", "105", STOP, CORRECT),
    (r"\boxed{twelve hundred}", "1200", STOP, CORRECT),
    (r"\boxed{a thousand}", "1000", STOP, CORRECT),
    (r"\boxed{\text{one million, four hundred and fifty thousand}}", "1450000", STOP, CORRECT),
    (r"\boxed{\text{nine hundred ninety-nine thousand nine hundred ninety-nine}}", "999999", STOP, CORRECT),
    (r"\boxed{\text{two three}}", "5", STOP, WRONG),
    (r"\boxed{\text{five or six}}", "5", STOP, WRONG),
    (r"\boxed{\text{seventy eighty}}", "150", STOP, WRONG),
    (r"\boxed{\text{no one}}", "1", STOP, WRONG),
    (r"\boxed{\text{and}}", "0", STOP, WRONG),
    # which box
    (r"\boxed{3} then \boxed{18}", "18", STOP, CORRECT),
    (r"\boxed{18} then \boxed{3}", "18", STOP, WRONG),
    (r"\boxed{18} then \boxed{3", "18", LENGTH, NO_ANSWER),
    (r"so \boxed{18} (write \boxed{})", "18", STOP, CORRECT),
    (r"\boxed{\boxed{18}}", "18", STOP, CORRECT),
    (r"{ { \boxed{18}", "18", STOP, CORRECT),
    (r"} \boxed{18}", "18", STOP, CORRECT),
    (r"\boxed{18} dollars for 3 days", "18", STOP, CORRECT),
    (r"\boxed{}", "5", STOP, NO_ANSWER),
    (r"\boxed{18 \text{ eggs}", "18", LENGTH, NO_ANSWER),
]

CUT_BOXES = [
    (r"The first part gives \boxed{12}. The total is \boxed{", "12", LENGTH, NO_ANSWER),
    (r"\boxed{12}, so \boxed{\frac{1}{", "12", LENGTH, NO_ANSWER),
    (r"\boxed{12}. The answer is \boxed{1", "12", LENGTH, NO_ANSWER),
    (r"\boxed{12}. The total is \boxed", "12", LENGTH, NO_ANSWER),
    (r"\boxed{12}. The total is \box", "12", LENGTH, NO_ANSWER),
    ("#### 12\nThe total is \\boxed{", "12", LENGTH, NO_ANSWER),
    (r"The answer is 12. In all it is \boxed{1", "12", LENGTH, NO_ANSWER),
    (r"The answer is 12. In all it is \boxed", "12", LENGTH, NO_ANSWER),
    (r"\boxed{12} <|im_end|>", "12", LENGTH, CORRECT),
    (r"\boxed{12} and \boxed{}", "12", LENGTH, CORRECT),
    # The brace was forgotten, not cut off: the text goes on, or came to its end.
    (r"\boxed{12}, so \boxed{18 eggs. " + "That is all. " * 50, "18", LENGTH, CORRECT),
    (r"\boxed{12}, so \boxed{18", "18", STOP, CORRECT),
    (r"\boxed{12}, so \boxed{18 eggs. So it is.", "18", STOP, CORRECT),
    (r"\boxed{18}, in a \boxed{", "18", STOP, CORRECT),
    (r"\boxed{18}, in a \boxed{nice frame", "18", STOP, CORRECT),
]

DIGITS = [
    ("الجواب هو \\boxed{١٨}", "18", STOP, CORRECT),  # Arabic
    ("پاسخ ۱۸ است", "18", STOP, CORRECT),  # Persian
    ("คำตอบคือ ๑๘", "18", STOP, CORRECT),  # Thai
    ("उत्तर: \\boxed{१८}", "18", STOP, CORRECT),  # Devanagari
    ("উত্তর ১৮", "18", STOP, CORRECT),  # Bengali
    ("\\boxed{１８}", "18", STOP, CORRECT),  # full width
    ("\\boxed{𝟏𝟖}", "18", STOP, CORRECT),  # bold
    ("#### ١٨", "18", LENGTH, CORRECT),
    ("The answer is १८.", "18", LENGTH, CORRECT),
    ("\\boxed{\\frac{٣٦}{٢}}", "18", STOP, CORRECT),
    ("\\boxed{١٨٫٥}", "18.5", STOP, CORRECT),
    ("\\boxed{١٬٨٠٠}", "1800", STOP, CORRECT),
    ("\\boxed{١٨٪}", "18", STOP, CORRECT),
    ("\\boxed{-١٨}", "-18", STOP, CORRECT),
    ("\\boxed{١٨}", "١٨", STOP, CORRECT),
    ("\\boxed{١٩}", "18", STOP, WRONG),
    ("\\boxed{١٢، ١٨}", "18", STOP, WRONG),
    ("\\boxed{10²}", "100", STOP, CORRECT),
    ("\\boxed{①}", "18", STOP, WRONG),
    ("الجواب هو \\boxed{\u200f١٨\u200e}", "18", STOP, CORRECT),  # marks of direction
    ("उत्तर: १,४५,०००", "145000", STOP, CORRECT),  # groups of two, as in India
    ("\\boxed{1,45,000}", "145000", STOP, WRONG),  # in these digits it may be a list
    ("The values are 10,20,300", "300", STOP, CORRECT),
]

THINKING = [
    (r"<think>\boxed{3}</think>\boxed{18}", "18", STOP, CORRECT),
    (r"<think>\boxed{18}</think>\boxed{3}", "18", STOP, WRONG),
    (r"\boxed{3}</think>18", "18", STOP, CORRECT),
    (r"<think>3</think>4<think>5</think>18", "18", STOP, CORRECT),
    (r"<think>\boxed{18}", "18", STOP, NO_ANSWER),
    (r"<think>\boxed{18}</think> done", "18", STOP, NO_ANSWER),
    (r"\boxed{18} <think> but then", "18", LENGTH, NO_ANSWER),
]

MARKERS = [
    ("#### 18", "18", STOP, CORRECT),
    ("so\n#### 18\n", "18", LENGTH, CORRECT),
    ("#### $1,450,000", "1450000", STOP, CORRECT),
    ("#### 18 eggs", "18", STOP, CORRECT),
    ("#### -18", "-18", STOP, CORRECT),
    ("#### **18**", "18", STOP, CORRECT),
    ("#### 3\n#### 18", "18", STOP, CORRECT),
    ("#### 18\nI hope that 100 % is clear", "18", STOP, CORRECT),
    ("#### 2. Second step\nThe answer is 18.", "18", STOP, CORRECT),
    ("#### Step 2\n 18", "18", STOP, CORRECT),
    ("The answer is 18.", "18", STOP, CORRECT),
    ("The answer is $18.", "18", LENGTH, CORRECT),
    ("The final answer is 2,125.", "2125", STOP, CORRECT),
    ("**Answer:** 18", "18", STOP, CORRECT),
    ("**Final Answer:**\n\n$18$", "18", STOP, CORRECT),
    ("Answer: 18 eggs", "18", STOP, CORRECT),
    ("ANSWER: 18", "18", STOP, CORRECT),
    ("answer = 18", "18", STOP, CORRECT),
    ("The answer is **18**.", "18", STOP, CORRECT),
    ("The answer is: \\(18\\)", "18", STOP, CORRECT),
    ("The answer is \\$18.50 per day", "18.5", STOP, CORRECT),
    ("The answer is therefore $\\frac{3}{4}$.", "0.75", STOP, CORRECT),
    ("The answer is 9 * 2 = 18 dollars.", "18", STOP, CORRECT),
    ("The answer is 18 because 9*2 is 18", "18", STOP, CORRECT),
    ("The answer is 18, which is 9*2.", "18", STOP, CORRECT),
    ("The answer is 18 (nine times 2).", "18", STOP, CORRECT),
    ("The answer is 3. No, the answer is 18.", "18", STOP, CORRECT),
    ("The answer is 3 or 5", "5", STOP, WRONG),
    ("The answer is 3, 5", "5", STOP, WRONG),
    ("the answer is not 18", "18", STOP, WRONG),
    ("the answer is not 20, it must be 18", "18", STOP, CORRECT),
    ("the answer is 20. No, the answer is not 20; it must be 18", "18", STOP, WRONG),
    ("The answer is eighteen.", "18", STOP, CORRECT),
    ("The answer is 18!", "18", STOP, CORRECT),
    ("The answer is one of the two, so 18", "18", STOP, CORRECT),
    ("The answer is unknown", "18", STOP, NO_ANSWER),
]

LAST_NUMBERS = [
    ("", "18", STOP, NO_ANSWER),
    ("no idea", "18", STOP, NO_ANSWER),
    ("She makes 18 dollars.", "18", STOP, CORRECT),
    ("She makes 18 dollars.", "18", LENGTH, NO_ANSWER),
    ("She makes $1,450,000.", "1450000", STOP, CORRECT),
    ("She has $1,234, as requested.", "1234", STOP, CORRECT),
    ("so $1{,}234$", "1234", STOP, CORRECT),
    (r"so $1\,450\,000$ dollars", "1450000", STOP, CORRECT),
    ("so 1\u202f450\u202f000 dollars", "1450000", STOP, CORRECT),
    ("values 10 200 300", "300", STOP, CORRECT),
    ("The area is 18 m^2.", "18", STOP, CORRECT),
    ("18 tons of CO2", "18", STOP, CORRECT),
    ("It was 18 in 2 m^2", "2", STOP, CORRECT),
    ("9 * 2 = 18", "18", STOP, CORRECT),
    ("10-18", "18", STOP, CORRECT),
    ("it is -18", "-18", STOP, CORRECT),
    ("it is −18.", "-18", STOP, CORRECT),
    ("profit of -$18", "-18", STOP, CORRECT),
    ("it is 3/4", "0.75", STOP, CORRECT),
    ("it is 3 1/2 cups", "3.5", STOP, CORRECT),
    (r"it is \frac{3}{4}.", "0.75", STOP, CORRECT),
    (r"it is \sqrt{49}", "7", STOP, CORRECT),
    (r"it is \sqrt{49}", "49", STOP, WRONG),
    ("it is 1.5e3", "1500", STOP, CORRECT),
    ("about $1.5 \\times 10^6$", "1500000", STOP, CORRECT),
    ("it is 2.5 million people", "2500000", STOP, CORRECT),
    ("18%", "18", STOP, CORRECT),
    ("= 18.50.", "18.5", STOP, CORRECT),
    ("(18)", "18", STOP, CORRECT),
    ("１８", "18", STOP, CORRECT),
]

FOUND_BY = [
    (r"#### 3 so the answer is 4, \boxed{5} or 6", "box", "5"),
    ("#### 3\nso the answer is 4, or 6", "marker", "3"),
    ("so the answer is 4.\nOr 6", "marker", "4"),
    ("or 6 eggs", "last_number", "6"),
    ("or some eggs", None, None),
]


MARKUP_BEHIND_A_MARKER = [
    ("**The answer is 18.** Janet sells 9 eggs at $2.", "18"),
    ("**Answer: Janet earns $18 a day.** She started with 16 eggs.", "18"),
    ("*Answer: 18.* (9 eggs at $2)", "18"),
    ('Answer: "18." She sold 9 eggs.', "18"),
    ("Final Answer: 18 \U0001f389", "18"),
    ("\u2705 **Answer: 12 apples** \U0001f34e", "12"),
    ("The answer is 18 \u2014 that is 9 eggs at $2.", "18"),
    ("The answer is 18 - 9 eggs at $2.", "18"),
    ("The answer is 20 - 2 = 18.", "18"),
    ("The answer is 18: 9 x 2.", "18"),
    ("The answer is **12**.<|eot_id|>", "12"),
    (r"\boxed{ \begin{aligned} 12 \end{aligned} }", "12"),
    (r"\boxed{18\\}", "18"),
    (r"\boxed{18^{\text{th}}}", "18"),
]


@pytest.mark.parametrize(("text", "target"), MARKUP_BEHIND_A_MARKER)
def test_what_stands_around_an_answer_does_not_change_it(text: str, target: str) -> None:
    assert grade(text, target, STOP).verdict is CORRECT
    assert grade(text, "9", STOP).verdict is WRONG


@pytest.mark.parametrize(
    ("text", "target", "finish_reason", "verdict"), [*BOXES, *CUT_BOXES, *DIGITS, *THINKING, *MARKERS, *LAST_NUMBERS]
)
def test_answers_are_graded(text: str, target: str, finish_reason: FinishReason, verdict: Verdict) -> None:
    assert grade(text, target, finish_reason).verdict is verdict


@pytest.mark.parametrize(("text", "found_by", "prediction"), FOUND_BY)
def test_the_score_says_how_the_answer_was_found(text: str, found_by: str | None, prediction: str | None) -> None:
    graded = grade(text, "7", STOP)
    assert (graded.found_by, graded.prediction) == (found_by, prediction)


@pytest.mark.parametrize("digits", ["9" * 5000, "1e999999999", "9^{9^9}", "9^{99999999}", "1/0", "10^{-9999999}"])
def test_no_number_is_too_large_to_grade(digits: str) -> None:
    for text in (f"\\boxed{{{digits}}}", f"#### {digits}", f"so it is {digits}"):
        assert grade(text, "18", STOP).verdict is WRONG


@pytest.mark.parametrize(
    ("target", "value"), [("18", 18), ("1450000", 1450000), ("-3", -3), ("0.5", 0.5), ("073", 73), ("248.0", 248)]
)
def test_targets_are_exact(target: str, value: float) -> None:
    assert parse_target(target) == value


@pytest.mark.parametrize("target", ["", "eighteen", "3 or 5", "x", "1" * 5000])
def test_a_target_that_is_no_number_is_a_data_error(target: str) -> None:
    with pytest.raises(DataError, match="is no number"):
        parse_target(target)
    with pytest.raises(DataError, match="is no number"):
        grade("18", target, STOP)


@given(st.integers(-(10**12), 10**12))
@settings(deadline=None)
def test_any_integer_is_found_in_any_clothes(number: int) -> None:
    grouped = f"{number:,}"
    for shown in (grouped, grouped.replace(",", "{,}"), grouped.replace(",", "\\,"), f"{number}.00", f"\\${number}"):
        for text in (f"\\boxed{{{shown}}}", f"#### {shown}", f"The answer is {shown}.", f"which makes {shown}"):
            assert grade(text, str(number), STOP).verdict is CORRECT
            assert grade(text, str(number + 1), STOP).verdict is WRONG
