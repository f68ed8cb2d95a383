"""Options are found and read in every notation models write them in. A grading bug adds its row before its fix."""

from __future__ import annotations

import pickle

import pytest

from latentmas.errors import DataError
from latentmas.samples import Answer, FinishReason, Sample, Verdict
from latentmas.scorers.choice import grade, resolve_target, score

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
CORRECT, WRONG, NO_ANSWER = Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER

ABCD = ("A", "B", "C", "D")
DIGITS = ("1", "2", "3", "4")
CANCER = ("Hemolytic uremic syndrome", "Oral ulcers", "Colorectal cancer", "Pancreatic cancer")
MEDQA = tuple(f"{label}. {text}" for label, text in zip(ABCD, CANCER, strict=True))
GERMS = ("C. difficile", "E. coli O157", "S. aureus", "B. cereus", "Vitamin C")
SPEEDS = ("4 m/s", "2 m/s", "12 m/s", "$3 \\times 10^{8}$ m/s")
COUNTS = ("4", "2", "1", "3")
GENES = ("R", "rr", "Rr", "RR")
BLOOD = ("A", "B", "AB", "O")
PAIR = ("the trophy", "the suitcase")

# text, target, labels, options, verdict
BOXES = [
    # the letter
    (r"\boxed{C}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{B}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C}", "C", ABCD, (), CORRECT),
    (r"\boxed{c}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C.}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{(C)}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C)}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{[C]}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\{C\}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{'C'}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C!}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed {C}", "C", ABCD, CANCER, CORRECT),
    (r"\fbox{C}", "C", ABCD, CANCER, CORRECT),
    (r"\\boxed{\\text{C}}", "C", ABCD, CANCER, CORRECT),
    ("\\boxed{Ｃ}", "C", ABCD, CANCER, CORRECT),
    ("\\boxed{\n C \n}", "C", ABCD, CANCER, CORRECT),
    # fonts
    (r"\boxed{\text{C}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\mathrm{C}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\mathbf{C}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\textbf{(C)}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\textbf{\text{C}}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{{\rm C}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\Large C}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\color{red}{C}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\left(C\right)}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{$C$}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{**C**}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\boxed{C}}", "C", ABCD, CANCER, CORRECT),
    # words before it
    (r"\boxed{\text{Option C}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{Choice (C)}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{Answer: C}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{The correct answer is } C}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{C is correct}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{Option 2}}", "2", DIGITS, SPEEDS, CORRECT),
    (r"\boxed{option2}", "2", ("1", "2"), PAIR, CORRECT),
    # with its text
    (r"\boxed{C. Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C: Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C) Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{(C) Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C - Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    ("\\boxed{C – Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C-Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C, Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C (Colorectal cancer)}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C \text{ Colorectal cancer}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{C}\\ \text{Colorectal cancer}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{Option C: Colorectal cancer}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C. \text{Carcinoma of the colon}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C. Colorectal cancer}", "C", ABCD, (), CORRECT),
    (r"\boxed{D. Both A and B}", "D", ABCD, (), CORRECT),
    (r"\boxed{C. Colorectal cancer}", "Colorectal cancer", ABCD, MEDQA, CORRECT),
    (r"\boxed{C. Oral ulcers}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C. Oral ulcers}", "B", ABCD, CANCER, WRONG),
    # only its text
    (r"\boxed{Colorectal cancer}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\text{colorectal  CANCER.}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\textbf{Colorectal}\ \textbf{cancer}}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{Colorectal cancer (C)}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{Colorectal cancer (D)}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{Colorectal cancer}", "Colorectal cancer", ABCD, MEDQA, CORRECT),
    (r"\boxed{Oral ulcers}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{cancer}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{Colorectal cancer}", "C", ABCD, (), WRONG),
    (r"\boxed{Colorectal cancer}", "A", ABCD, ("Colorectal cancer", "x", "colorectal cancer", "y"), CORRECT),
    (r"\boxed{Same}", "A", ABCD, ("same", "x", "same", "y"), WRONG),
    (r"\boxed{trophy}", "1", ("1", "2"), PAIR, CORRECT),
    (r"\boxed{The trophy}", "1", ("1", "2"), PAIR, CORRECT),
    (r"\boxed{3 \times 10^8 \text{ m/s}}", "D", ABCD, SPEEDS, CORRECT),
    ("\\boxed{3×10⁸ m/s}", "D", ABCD, SPEEDS, CORRECT),
    (r"\boxed{12\,\text{m/s}}", "C", ABCD, SPEEDS, CORRECT),
    (r"\boxed{2 m/s}", "C", ABCD, SPEEDS, WRONG),
    (r"\boxed{2}", "B", ABCD, SPEEDS, WRONG),
    (r"\boxed{\frac{1}{2}}", "A", ABCD, ("$\\dfrac12$", "1/3", "1/4", "1"), CORRECT),
    (r"\boxed{5\%}", "A", ABCD, ("5%", "5", "10%", "10"), CORRECT),
    (r"\boxed{H_2O}", "B", ABCD, ("CO_{2}", "H_{2}O", "O_{2}", "N_{2}"), CORRECT),
    ("\\boxed{H₂O}", "B", ABCD, ("CO_{2}", "H_{2}O", "O_{2}", "N_{2}"), CORRECT),
    # options that are letters or numbers themselves
    (r"\boxed{2}", "2", DIGITS, COUNTS, CORRECT),
    (r"\boxed{2}", "B", ABCD, COUNTS, CORRECT),
    (r"\boxed{4}", "A", ABCD, COUNTS, CORRECT),
    (r"\boxed{A. 4}", "A", ABCD, COUNTS, CORRECT),
    (r"\boxed{1. 4}", "1", DIGITS, COUNTS, CORRECT),
    (r"\boxed{1. 2}", "1", DIGITS, COUNTS, WRONG),
    (r"\boxed{7}", "B", ABCD, COUNTS, WRONG),
    (r"\boxed{C}", "C", ABCD, ("C", "NO_{2}", "O_{2}", "CO"), CORRECT),
    (r"\boxed{AB}", "C", ABCD, BLOOD, CORRECT),
    (r"\boxed{O}", "D", ABCD, BLOOD, CORRECT),
    (r"\boxed{A. A}", "A", ABCD, BLOOD, CORRECT),
    (r"\boxed{A. B}", "B", ABCD, BLOOD, WRONG),
    (r"\boxed{Rr}", "C", ABCD, GENES, CORRECT),
    (r"\boxed{RR}", "C", ABCD, GENES, WRONG),
    (r"\boxed{D. -1}", "D", ABCD, ("1", "2", "-2", "-1"), CORRECT),
    (r"\boxed{-1}", "D", ABCD, ("1", "2", "-2", "-1"), CORRECT),
    (r"\boxed{E. coli O157}", "B", ("A", "B", "C", "D", "E"), GERMS, CORRECT),
    (r"\boxed{E. coli}", "E", ("A", "B", "C", "D", "E"), GERMS, WRONG),
    (r"\boxed{C. difficile}", "C", ("A", "B", "C", "D", "E"), GERMS, WRONG),
    (r"\boxed{C. difficile}", "A", ("A", "B", "C", "D", "E"), GERMS, CORRECT),
    (r"\boxed{C-reactive protein}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{A planet}", "A", ABCD, CANCER, WRONG),
    (r"\boxed{Vitamin C}", "C", ABCD, CANCER, WRONG),
    # none of the row's labels
    (r"\boxed{E}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C}", "3", DIGITS, SPEEDS, WRONG),
    (r"\boxed{3}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{E}", "E", ("A", "B", "C", "D", "E"), (), CORRECT),
    (r"\boxed{E. Something else}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{3.5}", "3", DIGITS, SPEEDS, WRONG),
    (r"\boxed{\text{None of the above}}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{?}", "C", ABCD, CANCER, WRONG),
    # two of them
    (r"\boxed{C, D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C or D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C \text{ and } D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C/D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C & D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{CD}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C; D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{(C), (D)}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{A-D}", "A", ABCD, CANCER, WRONG),
    (r"\boxed{C. D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{\text{either C or D}}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C. Colorectal cancer or D. Pancreatic cancer}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C. Colorectal cancer, D}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{Colorectal cancer and pancreatic cancer}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{A, B, C, D}", "A", ABCD, CANCER, WRONG),
    (r"\boxed{1, 2}", "1", DIGITS, SPEEDS, WRONG),
    (r"\boxed{\text{not C}}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{\text{C is wrong}}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C, \text{ not } D}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{\begin{array}{c} C \end{array}}", "C", ABCD, CANCER, CORRECT),
    # which box
    (r"\boxed{B} then \boxed{C}", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C} then \boxed{B}", "C", ABCD, CANCER, WRONG),
    (r"\boxed{C} (write \boxed{})", "C", ABCD, CANCER, CORRECT),
    (r"\boxed{C} The answer is B.", "C", ABCD, CANCER, CORRECT),
    (r"<think>\boxed{B}</think>\boxed{C}", "C", ABCD, CANCER, CORRECT),
]

MARKERS = [
    ("The answer is C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C", "C", ABCD, CANCER, CORRECT),
    ("THE ANSWER IS C", "C", ABCD, CANCER, CORRECT),
    ("the answer is c.", "C", ABCD, CANCER, CORRECT),
    ("The answer is (C).", "C", ABCD, CANCER, CORRECT),
    ("The answer is (c) because it is.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C, which follows.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C because B and D are wrong.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C since it is.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C and B is wrong.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C, and A, B and D are incorrect.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C. A, B and D do not fit.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C. Oral ulcers are rarer.", "C", ABCD, CANCER, CORRECT),
    ("The answer is therefore C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is most likely option C.", "C", ABCD, CANCER, CORRECT),
    ("The answer would be C.", "C", ABCD, CANCER, CORRECT),
    ("The answer must be C.", "C", ABCD, CANCER, CORRECT),
    ("The answer to this question is C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is: C", "C", ABCD, CANCER, CORRECT),
    ("The answer is:\n\nC", "C", ABCD, CANCER, CORRECT),
    ("The answer is:\n\n**C. Colorectal cancer**\n\nIt is what colitis leads to.", "C", ABCD, CANCER, CORRECT),
    ("Answer: C", "C", ABCD, CANCER, CORRECT),
    ("answer：C", "C", ABCD, CANCER, CORRECT),
    ("Answer: C\n\nExplanation: A is wrong.", "C", ABCD, CANCER, CORRECT),
    ("Answer: Option C", "C", ABCD, CANCER, CORRECT),
    ("Answer: C. Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("Answer: C) Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("Answer: C Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("Answer - C", "C", ABCD, CANCER, CORRECT),
    ("final answer – C", "C", ABCD, CANCER, CORRECT),
    ("Answer → C", "C", ABCD, CANCER, CORRECT),
    ("answer = C", "C", ABCD, CANCER, CORRECT),
    ("Final answer (C)", "C", ABCD, CANCER, CORRECT),
    ("Ans: C", "C", ABCD, CANCER, CORRECT),
    ("The correct option is (C).", "C", ABCD, CANCER, CORRECT),
    ("The correct choice is C.", "C", ABCD, CANCER, CORRECT),
    ("Correct option: C", "C", ABCD, CANCER, CORRECT),
    ("I choose C.", "C", ABCD, CANCER, CORRECT),
    ("So I would go with option C.", "C", ABCD, CANCER, CORRECT),
    ("I'll pick (C) here.", "C", ABCD, CANCER, CORRECT),
    ("We therefore select C.", "C", ABCD, CANCER, CORRECT),
    ("C is the correct answer.", "C", ABCD, CANCER, CORRECT),
    ("Hence option C is the best choice.", "C", ABCD, CANCER, CORRECT),
    ("So (C) is the answer.", "C", ABCD, CANCER, CORRECT),
    ("Therefore, C is correct.", "C", ABCD, CANCER, CORRECT),
    ("Option B is right only if it bleeds. The answer is C. Option B is correct.", "C", ABCD, CANCER, CORRECT),
    # in other markup
    ("**Answer:** C", "C", ABCD, CANCER, CORRECT),
    ("**Answer: C**", "C", ABCD, CANCER, CORRECT),
    ("**Answer**: **(C)** Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("### Final Answer\n\nC", "C", ABCD, CANCER, CORRECT),
    ("### Final answer: C", "C", ABCD, CANCER, CORRECT),
    ("Answer: `C`", "C", ABCD, CANCER, CORRECT),
    ("Answer: $C$", "C", ABCD, CANCER, CORRECT),
    ("Answer: \\(\\text{C}\\)", "C", ABCD, CANCER, CORRECT),
    ("Answer: <b>C</b>", "C", ABCD, CANCER, CORRECT),
    ("<answer>C</answer>", "C", ABCD, CANCER, CORRECT),
    ('{"reason": "colitis", "answer": "C"}', "C", ABCD, CANCER, CORRECT),
    ("> *Answer*: C", "C", ABCD, CANCER, CORRECT),
    ("final_answer: C", "C", ABCD, CANCER, CORRECT),
    ("Final answer: **C** ✅", "C", ABCD, CANCER, CORRECT),
    ("✅ **Answer**: ✅ C", "C", ABCD, CANCER, CORRECT),
    ("The answer is:\n\n- C", "C", ABCD, CANCER, CORRECT),
    ("The answer is\n\n\\[\n\\text{C}\n\\]", "C", ABCD, CANCER, CORRECT),
    ("$\\mathbf{Answer}: C$", "C", ABCD, CANCER, CORRECT),
    ("$\\text{Answer: C}$", "C", ABCD, CANCER, CORRECT),
    ("Answer: C Explanation: it is.", "C", ABCD, CANCER, CORRECT),
    ("Answer: C / Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("The most likely answer among the choices given is C) Colorectal cancer.", "C", ABCD, CANCER, CORRECT),
    # the text of an option
    ("The answer is colorectal cancer.", "C", ABCD, CANCER, CORRECT),
    ("The answer is **Colorectal cancer**, since it is.", "C", ABCD, CANCER, CORRECT),
    ("The answer is colorectal cancer (C).", "C", ABCD, CANCER, CORRECT),
    ("The answer is cancer of the colon (C).", "C", ABCD, CANCER, CORRECT),
    ("The answer is colorectal cancerous tissue.", "C", ABCD, CANCER, NO_ANSWER),
    ("The answer is oral ulcers.", "C", ABCD, CANCER, WRONG),
    ("The answer is 12 m/s.", "C", ABCD, SPEEDS, CORRECT),
    ("The answer is the trophy.", "1", ("1", "2"), PAIR, CORRECT),
    ("The answer is 2.", "2", DIGITS, COUNTS, CORRECT),
    ("The answer is 2.", "B", ABCD, COUNTS, CORRECT),
    ("The answer is E. coli O157.", "B", ("A", "B", "C", "D", "E"), GERMS, CORRECT),
    # the last one
    ("The answer is B. No, the answer is C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C. No, the answer is B.", "C", ABCD, CANCER, WRONG),
    ("The answer is C, as the answer is clear.", "C", ABCD, CANCER, CORRECT),
    # what would be, were things otherwise
    ("The correct answer is C. If the patient had rash the answer would be A.", "C", ABCD, CANCER, CORRECT),
    ("The correct answer is C. Had he travelled, the answer would be D.", "C", ABCD, CANCER, CORRECT),
    ("The answer is C. If it bled, B would be the correct answer.", "C", ABCD, CANCER, CORRECT),
    ("If we weigh all this, the best answer would be C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is B. No, the best answer would be C.", "C", ABCD, CANCER, CORRECT),
    # special tokens of a chat template
    ("The answer is C.<|eot_id|>", "C", ABCD, CANCER, CORRECT),
    ("Answer: C<|im_end|>", "C", ABCD, CANCER, CORRECT),
    ("Answer: C</s>\n", "C", ABCD, CANCER, CORRECT),
    ("Answer: C<｜end▁of▁sentence｜>", "C", ABCD, CANCER, CORRECT),
    # other words for it
    ("Therefore, option (C) Colorectal cancer is correct.", "C", ABCD, CANCER, CORRECT),
    ("C. Colorectal cancer is the right answer.", "C", ABCD, CANCER, CORRECT),
    ("Therefore, option C is correct", "C", ABCD, CANCER, CORRECT),
    ("Ans. C", "C", ABCD, CANCER, CORRECT),
    ("Conclusion: C", "C", ABCD, CANCER, CORRECT),
    ("Final decision: C", "C", ABCD, CANCER, CORRECT),
    ("Conclusion: A planet turns.", "C", ABCD, CANCER, NO_ANSWER),
    ("Option (B) Colorectal cancer is correct.", "C", ABCD, CANCER, NO_ANSWER),
    # another one than denied
    ("The correct answer is neither A nor B, it is C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is not A but C.", "C", ABCD, CANCER, CORRECT),
    ("The answer is not A, but rather C.", "C", ABCD, CANCER, CORRECT),
    ("The correct answer is neither A nor C.", "C", ABCD, CANCER, NO_ANSWER),
    ("The answer is neither A nor (C).", "C", ABCD, CANCER, NO_ANSWER),
    ("The answer is not only A but also C.", "C", ABCD, CANCER, NO_ANSWER),
    # other languages
    ("答案是C。", "C", ABCD, CANCER, CORRECT),
    ("答案：C", "C", ABCD, CANCER, CORRECT),
    ("正确答案是（C）。", "C", ABCD, CANCER, CORRECT),
    ("因此，选C。", "C", ABCD, CANCER, CORRECT),
    ("故选 C", "C", ABCD, CANCER, CORRECT),
    ("La respuesta correcta es la C.", "C", ABCD, CANCER, CORRECT),
    ("La réponse est (C).", "C", ABCD, CANCER, CORRECT),
    ("Die Antwort ist C.", "C", ABCD, CANCER, CORRECT),
    ("A resposta correta é a C.", "C", ABCD, CANCER, CORRECT),
    ("La risposta corretta è C.", "C", ABCD, CANCER, CORRECT),
    ("Правильный ответ: C", "C", ABCD, CANCER, CORRECT),
    ("The answer is A. 答案是C。", "C", ABCD, CANCER, CORRECT),
    ("答案是A。The answer is C.", "C", ABCD, CANCER, CORRECT),
    ("答案是C和D。", "C", ABCD, CANCER, WRONG),
    ("La respuesta es C o D.", "C", ABCD, CANCER, WRONG),
    ("答案是A。", "C", ABCD, CANCER, WRONG),
    ("答案不是C。", "C", ABCD, CANCER, NO_ANSWER),
    ("如果答案是C，他会出血。", "C", ABCD, CANCER, NO_ANSWER),
    ("La respuesta es a menudo incierta.", "C", ABCD, CANCER, NO_ANSWER),
    ("Die Antwort ist C-reaktives Protein.", "C", ABCD, CANCER, NO_ANSWER),
    ("Si la respuesta es C, sangra.", "C", ABCD, CANCER, NO_ANSWER),
    # not this one
    ("The answer is not B.", "B", ABCD, CANCER, NO_ANSWER),
    ("The answer isn't B.", "B", ABCD, CANCER, NO_ANSWER),
    ("The answer cannot be B.", "B", ABCD, CANCER, NO_ANSWER),
    ("The answer is C. The answer is not B.", "C", ABCD, CANCER, CORRECT),
    ("The incorrect answer is B.", "B", ABCD, CANCER, NO_ANSWER),
    ("Another option is B.", "B", ABCD, CANCER, NO_ANSWER),
    ("If the answer is B, it must bleed.", "B", ABCD, CANCER, NO_ANSWER),
    ("I don't think the answer is B.", "B", ABCD, CANCER, NO_ANSWER),
    ("Option B is wrong.", "B", ABCD, CANCER, NO_ANSWER),
    ("Option B is not the correct answer.", "B", ABCD, CANCER, NO_ANSWER),
    ("B is the correct answer only if it bleeds.", "B", ABCD, CANCER, NO_ANSWER),
    ("Is B the answer? Vitamin B is the best choice?", "B", ABCD, CANCER, NO_ANSWER),
    ("Vitamin B is the correct choice for them.", "B", ABCD, CANCER, NO_ANSWER),
    ("Which option is correct: A, B, C or D?", "C", ABCD, CANCER, NO_ANSWER),
    ("I need to choose A, B, C, or D.", "D", ABCD, CANCER, NO_ANSWER),
    ("The answer is one of these:\nA. x\nB. y", "A", ABCD, CANCER, NO_ANSWER),
    ("Which is the answer:\nA) Hemolytic uremic syndrome\nB) Oral ulcers", "A", ABCD, CANCER, NO_ANSWER),
    ("The drug of choice is B. It is cheap.", "B", ABCD, CANCER, NO_ANSWER),
    # two of them
    ("The answer is C or D.", "C", ABCD, CANCER, WRONG),
    ("The answer is either C or D.", "C", ABCD, CANCER, WRONG),
    ("The answers are C and D.", "C", ABCD, CANCER, WRONG),
    # prose
    ("The answer is a planet.", "A", ABCD, CANCER, NO_ANSWER),
    ("The answer is A planet.", "A", ABCD, CANCER, NO_ANSWER),
    ("The answer is C-reactive protein.", "C", ABCD, CANCER, NO_ANSWER),
    ("The answer is B cells.", "B", ABCD, CANCER, NO_ANSWER),
    ("The answer is vitamin C.", "C", ABCD, CANCER, NO_ANSWER),
    ("The answer is hepatitis B.", "B", ABCD, CANCER, NO_ANSWER),
    ("The answer is 2 cm.", "2", DIGITS, SPEEDS, NO_ANSWER),
    ("The answer is 2.5.", "2", DIGITS, SPEEDS, NO_ANSWER),
    ("The answer is unclear.", "C", ABCD, CANCER, NO_ANSWER),
]

BOLD = [
    ("So it is **C** here", "C", ABCD, CANCER, CORRECT),
    ("So it is **(C)** here", "C", ABCD, CANCER, CORRECT),
    ("So it is **C.** here", "C", ABCD, CANCER, CORRECT),
    ("So it is __C__ here", "C", ABCD, CANCER, CORRECT),
    ("So it is *C* here", "C", ABCD, CANCER, CORRECT),
    ("So it is <b>C</b> here", "C", ABCD, CANCER, CORRECT),
    ("So it is \\textbf{C} here", "C", ABCD, CANCER, CORRECT),
    ("So it is **Option C** here", "C", ABCD, CANCER, CORRECT),
    ("So it is **(C) Colorectal cancer** here", "C", ABCD, CANCER, CORRECT),
    ("So it is **C. Colorectal cancer** here", "C", ABCD, MEDQA, CORRECT),
    ("So it is **C. Colorectal cancer** here", "C", ABCD, (), CORRECT),
    ("First **B**, but then **C** fits", "C", ABCD, CANCER, CORRECT),
    ("**A** no **B** no **C** yes **D** no, so **C** it is", "C", ABCD, CANCER, CORRECT),
    ("**A.** x\n**B.** y\n**C.** z\n**D.** w", "D", ABCD, CANCER, NO_ANSWER),
    ("**A**, **B**, **C** and **D** are the options", "D", ABCD, CANCER, NO_ANSWER),
    ("**A. Hemolytic uremic syndrome**: no.\n**B. Oral ulcers**: no.", "B", ABCD, CANCER, NO_ANSWER),
    ("**B** is wrong", "B", ABCD, CANCER, NO_ANSWER),
    ("it is not **B**", "B", ABCD, CANCER, NO_ANSWER),
    ("We can rule out **B**", "B", ABCD, CANCER, NO_ANSWER),
    ("vitamin **C** is good", "C", ABCD, CANCER, NO_ANSWER),
    ("**C-reactive** protein is high", "C", ABCD, CANCER, NO_ANSWER),
    ("**A planet** turns", "A", ABCD, CANCER, NO_ANSWER),
    ("**1.** We look.\n**2.** We see.", "2", DIGITS, SPEEDS, NO_ANSWER),
    ("**E** is energy", "C", ABCD, CANCER, NO_ANSWER),
]

LINES = [
    ("C", "C", ABCD, CANCER, CORRECT),
    ("C.", "C", ABCD, CANCER, CORRECT),
    ("(C)", "C", ABCD, CANCER, CORRECT),
    ("c", "C", ABCD, CANCER, CORRECT),
    ("`C`", "C", ABCD, CANCER, CORRECT),
    ("We look at it.\n\nC\n", "C", ABCD, CANCER, CORRECT),
    ("We look at it.\n\n- C\n\nThat was it.", "C", ABCD, CANCER, CORRECT),
    ("We look at it.\nOption C", "C", ABCD, CANCER, CORRECT),
    ("We look at it.\nTherefore, C.", "C", ABCD, CANCER, CORRECT),
    ("#### C", "C", ABCD, CANCER, CORRECT),
    ("C. Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("We look at it.\nC. Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("-1", "D", ABCD, ("1", "2", "-2", "-1"), CORRECT),
    ("C", "C", ABCD, ("C", "NO_{2}", "O_{2}", "CO"), CORRECT),
    ("2", "2", DIGITS, COUNTS, CORRECT),
    ("It bleeds.\n=> C", "C", ABCD, CANCER, CORRECT),
    ("It bleeds.\n→ C", "C", ABCD, CANCER, CORRECT),
    ("It bleeds.\n→ C. Colorectal cancer", "C", ABCD, CANCER, CORRECT),
    ("C</s>", "C", ABCD, CANCER, CORRECT),
    ("It grows slowly, which corresponds to option C.", "C", ABCD, CANCER, CORRECT),
    ("The most likely diagnosis is **colorectal cancer** (C).", "C", ABCD, CANCER, CORRECT),
    ("It is unlikely, which corresponds to option C.", "C", ABCD, CANCER, NO_ANSWER),
    ("It is not colorectal cancer (C).", "C", ABCD, CANCER, NO_ANSWER),
    ("The first thought is oral ulcers (C).", "C", ABCD, CANCER, NO_ANSWER),
    ("The patient may have colorectal cancer (C).", "C", ABCD, CANCER, NO_ANSWER),
    ("4 / 2\n=> 2", "2", DIGITS, SPEEDS, NO_ANSWER),
    ("A\nB\nC\nD", "D", ABCD, CANCER, NO_ANSWER),
    ("C. Colorectal cancer\nD. Pancreatic cancer", "D", ABCD, CANCER, NO_ANSWER),
    ("A planet turns faster", "A", ABCD, CANCER, NO_ANSWER),
    ("C-reactive protein is high", "C", ABCD, CANCER, NO_ANSWER),
    ("A", "B", ABCD, CANCER, WRONG),
]

CUT = [
    (r"\boxed{C} and mo", "C", CORRECT),
    ("The answer is C. This is bec", "C", CORRECT),
    ("So **C** is what we wan", "C", NO_ANSWER),
    ("C", "C", NO_ANSWER),
    (r"so it is \boxed{C", "C", NO_ANSWER),
    (r"<think> the answer is C, \boxed{C}", "C", NO_ANSWER),
]

FOUND_BY = [
    (r"The answer is B. **A** \boxed{\text{C}}", "box", "C"),
    (r"\boxed{\text{nothing fits}}", "box", r"\text{nothing fits}"),
    (r"\boxed{E}", "box", "E"),
    (r"\boxed{C or D}", "box", "C or D"),
    ("The answer is B. **A**", "marker", "B"),
    ("It is **A**.\nD", "bold", "A"),
    ("It is\nD", "line", "D"),
    ("It is A or so", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "target", "labels", "options", "verdict"), BOXES)
def test_a_box_is_read(text, target, labels, options, verdict):
    graded = grade(text, target, STOP, labels, options)
    assert (graded.verdict, graded.found_by) == (verdict, "box")


@pytest.mark.parametrize(
    ("row", "found_by"),
    [(row, by) for by, rows in {"marker": MARKERS, "bold": BOLD, "line": LINES}.items() for row in rows],
)
def test_an_answer_without_a_box_is_found(row, found_by):
    text, target, labels, options, verdict = row
    graded = grade(text, target, STOP, labels, options)
    assert (graded.verdict, graded.found_by) == (verdict, None if verdict is NO_ANSWER else found_by)


@pytest.mark.parametrize(("text", "target", "verdict"), CUT)
def test_a_cut_text_needs_a_box_or_a_marker(text, target, verdict):
    assert grade(text, target, LENGTH, ABCD, CANCER).verdict is verdict


@pytest.mark.parametrize(("text", "found_by", "prediction"), FOUND_BY)
def test_the_score_says_how_the_answer_was_found(text, found_by, prediction):
    graded = grade(text, "A", STOP, ABCD, CANCER)
    assert (graded.found_by, graded.prediction) == (found_by, prediction)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (r"\boxed{E}", "E is none of the labels A, B, C, D"),
        (r"\boxed{C or D}", "names more than one option: C and D"),
        (r"\boxed{C. Oral ulcers}", "names more than one option: C and B"),
        (r"\boxed{nothing}", "names no option"),
        (r"\boxed{B}", None),
    ],
)
def test_the_score_says_why_a_box_is_wrong(text, detail):
    assert grade(text, "A", STOP, ABCD, CANCER).detail == detail


@pytest.mark.parametrize(
    ("target", "labels", "options", "label"),
    [
        ("C", ABCD, CANCER, "C"),
        ("C", ABCD, (), "C"),
        ("c", ABCD, CANCER, "C"),
        ("2", DIGITS, COUNTS, "2"),
        ("2", ABCD, COUNTS, "B"),
        ("c", ABCD, ("c", "d", "e", "f"), "A"),
        ("Colorectal cancer", ABCD, CANCER, "C"),
        ("Colorectal cancer", ABCD, MEDQA, "C"),
        ("C. Colorectal cancer", ABCD, MEDQA, "C"),
        ("C. Colorectal cancer", ABCD, CANCER, "C"),
        ("colorectal cancer.", ABCD, MEDQA, "C"),
        ("C. difficile", ("A", "B", "C", "D", "E"), GERMS, "A"),
        ("E. coli O157", ("A", "B", "C", "D", "E"), GERMS, "B"),
        ("Rr", ABCD, GENES, "C"),
    ],
)
def test_a_target_is_a_label_or_the_text_of_an_option(target, labels, options, label):
    assert resolve_target(target, labels, options) == label


@pytest.mark.parametrize(
    ("target", "labels", "options", "message"),
    [
        ("C", (), (), "has no labels"),
        ("C", ABCD, CANCER[:3], "3 options for 4 labels"),
        ("A", ("A", "a"), (), "are not all different"),
        ("A", ("A", "B", "A"), (), "are not all different"),
        ("A", ("A", " "), (), "label ' ' is no letter"),
        ("A", ("A.", "B."), (), "label 'A.' is no letter"),
        ("same", ABCD, ("same", "x", "same", "y"), "more than one option: A, C"),
        ("E", ABCD, CANCER, "names no option; expected one of the labels A, B, C, D or the text of an option"),
        ("", ABCD, CANCER, "names no option"),
        ("Colorectal cancer", ABCD, (), "names no option; expected one of the labels A, B, C, D$"),
        ("cancer", ABCD, CANCER, "names no option"),
    ],
)
def test_a_target_that_names_no_option_is_a_data_error(target, labels, options, message):
    with pytest.raises(DataError, match=message):
        resolve_target(target, labels, options)
    with pytest.raises(DataError, match=message):
        grade("C", target, STOP, labels, options)


def test_a_sample_is_graded_by_its_own_options():
    sample = Sample(id="1", question="?", target="Colorectal cancer", labels=ABCD, options=MEDQA)
    scorer = pickle.loads(pickle.dumps(score))
    assert scorer(Answer(text="The answer is (C).", finish_reason=STOP), sample).verdict is CORRECT
    assert scorer(Answer(text="So **C** it is", finish_reason=LENGTH), sample).verdict is NO_ANSWER


@pytest.mark.parametrize(
    "text",
    [
        "The correct answer is B. If the patient had rash the answer would be A.",
        "The answer is B. Had he travelled, the answer would be D.",
        "The answer would be B.",
        "The answer is B.<|eot_id|>",
        "Answer: B<|im_end|>",
        "Therefore, option B is correct.",
        "Ans. B",
        "Conclusion: B",
        "Final decision: B",
        "The data fit colon cancer, which corresponds to option B.",
        "We find it.\n=> B",
        "答案是B。",
        "因此，选B。",
        "La respuesta correcta es la B.",
        "La réponse est (B).",
        "Правильный ответ: B",
        r"\boxed{\begin{array}{c} B \end{array}}",
    ],
)
def test_models_have_many_ways_to_say_it(text):
    options = ("Hepatitis", "Colorectal cancer", "Diabetes", "Measles")
    assert grade(text, "B", FinishReason.STOP, ("A", "B", "C", "D"), options).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "text", ["\\boxed{٢}", "The answer is २.", "正确答案是 ２", "**๒**", "২", "Option ٢", "\\boxed{\u200f٢}"]
)
def test_a_label_counts_in_the_digits_of_every_script(text: str) -> None:
    for labels, gold in ((("1", "2"), "2"), (("١", "٢"), "٢")):
        assert grade(text, gold, STOP, labels, ("Sarah", "Maria")).verdict is CORRECT
    assert grade(text, "1", STOP, ("1", "2"), ("Sarah", "Maria")).verdict is WRONG


@pytest.mark.parametrize(
    ("text", "finish_reason", "verdict"),
    [
        (r"\boxed{C}. No, I mean \boxed{", LENGTH, NO_ANSWER),
        (r"The answer is C. No, it is \boxed{", LENGTH, NO_ANSWER),
        (r"The answer is \boxed{C}. No, it is \boxed{\text{", LENGTH, NO_ANSWER),
        (r"\boxed{A}. No, I mean \boxed{C", STOP, CORRECT),
        (r"\boxed{C} in a \boxed{", STOP, CORRECT),
        (r"\boxed{C} in a \boxed{frame", STOP, CORRECT),
    ],
)
def test_a_text_cut_inside_of_a_later_box_has_no_answer(
    text: str, finish_reason: FinishReason, verdict: Verdict
) -> None:
    assert grade(text, "C", finish_reason, ABCD, CANCER).verdict is verdict
