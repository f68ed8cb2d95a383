"""An answer ends where the model goes on with the next question, and nowhere else."""

from __future__ import annotations

import time

import pytest

from latentmas.samples import FinishReason, Verdict
from latentmas.scorers import choice, number
from latentmas.scorers._code_extract import extract

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
TOM = "Tom has 3 pens and buys 4 more. How many pens?"
GAS = "Which gas do plants absorb?\nA. oxygen\nB. nitrogen\nC. carbon dioxide\nD. helium"
ABCD, GASES = ("A", "B", "C", "D"), ("oxygen", "nitrogen", "carbon dioxide", "helium")

GOES_ON = [
    # after an end of its own
    (f"#### 18\n\nQuestion: {TOM}\nAnswer: 3 + 4 = 7\n#### 7", STOP),
    (f"#### 18\nQuestion: {TOM}\n#### 7", STOP),
    (f"9 x 2 = 18\n#### 18\n\n\nQ2. {TOM}\nA2. 7\n#### 7", STOP),
    (f"Question: Janet has 16 eggs. How much?\nAnswer: #### 18\n\nQuestion: {TOM}\nAnswer: #### 7", STOP),
    ("#### 18\n\nTom has 3 pens and buys 4 more. How many pens does he have?\n3 + 4 = 7\n#### 7", STOP),
    # after a box
    (f"\\boxed{{18}}\n\nProblem 2: {TOM}\n\nSolution: \\boxed{{7}}", STOP),
    (f"\\boxed{{18}}\n\n**Question:** {TOM}\n\n**Answer:** \\boxed{{7}}", STOP),
    (f"\\boxed{{18}}\n\n## Problem\n\n{TOM}\n\n## Solution\n\n\\boxed{{7}}", STOP),
    # after an answer that is announced
    (f"The answer is 18.\n\nQuestion: {TOM}\n\nAnswer: 7", LENGTH),
    ("The answer is 18.\n\nQuestion: How many pens does Tom have?\n\nAnswer: 7", LENGTH),
    ("The answer is 18.\n\nQuestion: Tom has 3 pens and", LENGTH),
    (f"The answer is 18.\n\nQ: {TOM}\nA: The answer is 7.", STOP),
    (f"The answer is 18\n\n---\n\nProblem: {TOM}\n\nThe answer is 7", STOP),
    ("The answer is 18.\n\n问题：小明有3支笔，又买了4支。一共有几支？\n答案：7", STOP),
    (f"The answer is 18.\n\nInput: {TOM}\nOutput: The answer is 7.", LENGTH),
    # after a result that nothing announces
    (f"He makes 9*2 = 18.\n\nQuestion: {TOM}\nAnswer: 7", LENGTH),
    (f"So she makes 18.\n\nQuestion:\n{TOM}\n\nAnswer:\n7", STOP),
    (
        "So she makes 18.\n\nQuestion: If 6 potatoes make 36 hash browns, how many do 96 make?\nAnswer: 7",
        STOP,
    ),
    ("So he makes 18.\n\nQuestion: Tom has 3 pens and buys 4 more. How many pe", LENGTH),
    # in other words and languages
    ("18\n\nQuestion: Tom has 3 pens and buys 4 more. How many pens?\nAnswer: 7", LENGTH),
    (f"$18.00\nQuestion: {TOM}\nAnswer: 7", LENGTH),
    (f"#### 18\n\n2. {TOM}\n#### 7", STOP),
    (f"The answer is 18.\n\nQuestion (2): {TOM}\nAnswer: 7", LENGTH),
    (f"The answer is 18.\n\nExample 2:\n{TOM}\nThe answer is 7.", LENGTH),
    ("La respuesta es 18.\n\nPregunta: Tom tiene 3 plumas y compra 4. ¿Cuántas tiene?\nRespuesta: 7", LENGTH),
    ("El total es 18.\n\nProblema: Tom tiene 3 plumas. Compra 4 más. ¿Cuántas tiene?\nSolución: 7", LENGTH),
    ("La réponse est 18.\n\nQuestion : Tom a 3 stylos et en achète 4. Combien en a-t-il ?\nRéponse : 7", LENGTH),
    ("La réponse est 18.\n\nExercice\u00a02\u00a0: Tom a 3 stylos et en achète 4. Combien ?\nRéponse : 7", LENGTH),
    ("Die Antwort ist 18.\n\nAufgabe: Tom hat 3 Stifte und kauft 4. Wie viele hat er?\nLösung: 7", LENGTH),
    ("A resposta é 18.\n\nPergunta: Tom tem 3 canetas e compra 4. Quantas tem?\nResposta: 7", LENGTH),
    ("Ответ: 18\n\nЗадача 2. У Тома 3 ручки, он купил ещё 4. Сколько у него ручек?\nОтвет: 7", LENGTH),
    ("答案是18。\n\n问题：汤姆有3支笔，又买了4支。他有多少支笔？\n答案：7", LENGTH),
    ("所以一共是18元。\n\n问题：汤姆有3支笔。他又买了4支。他有多少支笔？\n答案：7", LENGTH),
    ("答案是 \\boxed{18}。\n\n下一题：汤姆有3支笔，又买了4支。他有多少支笔？\n答案是 \\boxed{7}。", LENGTH),
    ("答えは18です。\n\n問題：トムはペンを3本持っていて、4本買いました。全部で何本ですか？\n答え：7", LENGTH),
    ("답은 18입니다.\n\n질문: 톰은 펜이 3개 있고 4개를 더 샀습니다. 펜은 몇 개입니까?\n답: 7", LENGTH),
    ("الجواب هو ١٨.\n\nسؤال: لدى توم ٣ أقلام واشترى ٤. كم قلما لديه؟\nالجواب: ٧", LENGTH),
    ("उत्तर १८ है।\n\nप्रश्न: टॉम के पास ३ पेन हैं और वह ४ खरीदता है। कितने पेन हैं?\nउत्तर: ७", LENGTH),
    # turns of a chat, with their tokens and without
    (f"The answer is 18.\nuser\n{TOM}\nassistant\nThe answer is 7.", LENGTH),
    (f"The answer is 18.user\n\n{TOM}assistant\n\nThe answer is 7.", LENGTH),
    (f"So he makes 18.<|im_end|>\n<|im_start|>user\n{TOM}<|im_end|>\n<|im_start|>assistant\nThe answer is 7.", LENGTH),
    (
        f"The answer is 18.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{TOM}<|eot_id|> The answer is 7.",
        LENGTH,
    ),
    (f"The answer is 18.<end_of_turn>\n<start_of_turn>user\n{TOM}<end_of_turn>\n<start_of_turn>model\n7", LENGTH),
    (f"[INST] what [/INST] The answer is 18. [INST] {TOM} [/INST] The answer is 7.", LENGTH),
    (f"The answer is 18.\nHuman: {TOM}\nAssistant: The answer is 7.", LENGTH),
    (f"The answer is 18.\n\nUser: {TOM}\n\nAssistant: The answer is 7.", LENGTH),
    (f"#### 18\n\n### Instruction:\n{TOM}\n\n### Response:\n#### 7", STOP),
    (f"<|channel|>final<|message|>It is 18.<|return|><|start|>user<|message|>{TOM}", LENGTH),
    (f"#### 18</s> Question: {TOM} #### 7", STOP),
    (f"#### 18<|endoftext|>{TOM} #### 7", STOP),
    (f"The answer is 18.<｜end▁of▁sentence｜><｜User｜>{TOM}<｜Assistant｜>The answer is 7.", LENGTH),
]
STAYS = [
    # its own question, over again
    "Question: Janet has 16 eggs. How much does she make?\nAnswer: 9*2 = 18. The answer is 18.",
    "Problem: Janet sells 9 eggs at $2.\n\nStep: 9*2.\n\nAnswer: 18",
    "Let us restate it.\nQuestion: 9 eggs at $2 each. How much?\nSo 9*2 = 18.",
    "Given: Janet has 9 eggs.\n\nQuestion: how many dollars does she make?\nAnswer: 18",
    # what it asks itself
    "The first answer is 9.\nQuestion: what remains? 9*2. The answer is 18.",
    "Eggs left: 16-7 = 9.\n\nQuestion: what are they worth?\nAnswer: 18",
    "Question 1: How many eggs are left?\nAnswer: 9\n\nQuestion 2: How much is it? She asks 2 for each.\nAnswer: 18",
    "Question 1: How many?\n\\boxed{9}\n\nQuestion 2: How much is that? It is 9*2.\n\\boxed{18}",
    "Left: 16-7 = 9.\n\nQuestion: How much does Janet make every day when she sells 9 eggs at 2 each?\nAnswer: 18",
    "\\boxed{9} eggs.\n\nQuestion: what are they worth?\n\n\\boxed{18}",
    "Question 1: How many eggs are left?\n#### 9\n\nQuestion 2: How much are they worth in all?\n#### 18",
    "Answer: 18\n\nQuestion: Is that plausible? Yes, because 9*2 = 18.",
    "The answer is 20.\n\nWait. Question: is that right? No. The answer is 18.",
    "**Question:** How much?\n**Given:** 9 eggs at 2.\n\n**Solution:** 9*2 = 18\n\n**Question answered:** \\boxed{18}",
    "#### 9\n\nWait, Janet sells these for 2 dollars each. How much does she make every day then?\n9*2 = 18\n#### 18",
    "#### 9\n\nIs it really only 9 dollars, although each of the eggs costs 2 dollars?\nNo.\n#### 18",
    "The number of eggs is \\boxed{9}.\n\nTask 2: multiply 9 by the price of $2.\n\n\\boxed{18}",
    "The answer to the first part is 9.\n\nQuestion 2: How much does Janet make by 9 eggs at $2 for each?\nAnswer: 18",
    "Problema: Janet vende 9 huevos a $2. ¿Cuánto gana?\n\nSolución: 9*2 = 18\n\nLa respuesta es 18.",
    "问题：珍妮卖9个鸡蛋，每个2美元。她赚多少？\n\n解：9*2=18\n\n答案：18",
    "Answer: 9 eggs.\n\nQuestion 2: How much money? 9*2 = 18.\n\nAnswer: 18",
    "Ответ: 9 яиц.\n\nВопрос 2: Сколько денег? 9*2 = 18.\n\nОтвет: 18",
    "Respuesta parcial: 9.\n\nPregunta 2: ¿Cuánto dinero? 9*2 = 18.\n\nRespuesta: 18",
    "\\boxed{9} huevos.\n\nProblema: falta el precio. 9*2 = 18\n\n\\boxed{18}",
    # what is no heading and no turn
    "The user has 9 eggs.\nA user\nmay sell them: the answer is 18.",
    "Let me think.<|im_end|>\n<|im_start|>assistant\nThe answer is 18.",
    "Problems: none. The answer is 18.",
]


@pytest.mark.parametrize(("text", "finish_reason"), GOES_ON)
def test_what_follows_the_next_question_is_not_graded(text: str, finish_reason: FinishReason) -> None:
    assert number.grade(text, "18", finish_reason).verdict is Verdict.CORRECT
    assert number.grade(text, "7", finish_reason).verdict is Verdict.WRONG


@pytest.mark.parametrize("text", STAYS)
def test_a_heading_of_the_answer_itself_cuts_nothing_off(text: str) -> None:
    assert number.grade(text, "18", STOP).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "text",
    [
        f"The answer is B.\n\nQuestion: {GAS}\nAnswer: C",
        f"B\n\nQuestion: {GAS}\nAnswer: C",
        f" B. nitrogen\n\nQuestion: {GAS}\nAnswer: C. carbon dioxide",
        f"\\boxed{{B}}\n\nQuestion: {GAS}\nAnswer: \\boxed{{C}}",
        f"The answer is B.\nuser\n{GAS}\nassistant\nThe answer is C.",
        f"The answer is B.<|im_end|>\n<|im_start|>user\n{GAS}<|im_end|>\n<|im_start|>assistant\nC",
        f"Question: {GAS}\nAnswer: B",
        f"(B)\nQuestion: {GAS}\nAnswer: (C)",
        f"B. nitrogen\nQuestion: {GAS}\nAnswer: C",
        "答案是Ｂ。\n\n题目：植物吸收哪种气体？\nA. 氧\nB. 氮\nC. 二氧化碳\nD. 氦\n答案：Ｃ",
    ],
)
def test_a_choice_ends_where_the_next_question_begins(text: str) -> None:
    assert choice.grade(text, "B", LENGTH if "user" in text else STOP, ABCD, GASES).verdict is Verdict.CORRECT


def test_a_choice_that_finds_a_fault_in_its_first_guess_is_read_to_its_end() -> None:
    text = "A\n\nProblem: that is wrong, since plants breathe it out. I choose C.\n\nThe answer is C."
    assert choice.grade(text, "C", STOP, ABCD, GASES).verdict is Verdict.CORRECT


F = "def f(n):\n    return n + 1\n"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{F}```\n<|im_start|>user\nNow 2<|im_end|>\n```python\ndef f(n):\n    return n + 2\n```",
        f"```python\n{F}```\n\n### Instruction:\nNow 2\n\n### Response:\n```python\ndef f(n):\n    return n + 2\n```",
        f"```python\ndef f(n):\n    return 1\n```\n\nProblem: it is wrong. It is slow.\n\nSolution:\n```python\n{F}```",
        f"{F}\n\nQuestion: Write a function g that returns 3.\nAnswer:\ndef g(): return 3",
    ],
)
def test_a_program_ends_where_the_next_question_begins(text: str) -> None:
    found = extract(text, "f")
    assert found is not None
    assert found.code.strip() == F.strip()


@pytest.mark.parametrize(
    "piece", ["Question: a\n", "#### 3\n", "<|im_end|>", "= 3 so\n\nQ: Tom. How?\nA:\n", "#", " \n"]
)
def test_no_heap_of_headings_takes_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    seconds = []
    while len(seconds) < 3 and min(seconds, default=9) > 2:  # a busy machine only adds
        begin = time.perf_counter()
        number.grade(text, "18", STOP)
        choice.grade(text, "B", STOP, ABCD, GASES)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 2
