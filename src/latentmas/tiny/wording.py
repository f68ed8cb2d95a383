"""How a problem is told, one text per fact.

Names and things are the only words that vary freely; the sentences are few, so that a small model
can learn them all.
"""

from latentmas.tiny.problem import Problem

NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Lea", "Sam", "Ida", "Leo", "Mia", "Jim", "Zoe")
THINGS = ("pens", "cups", "hats", "nuts", "maps", "toys", "eggs", "keys", "pins", "bags")

_STARTS = (
    "{owner} has {amount} {thing}.",
    "{owner} starts with {amount} {thing}.",
    "{owner} owns {amount} {thing}.",
)
_QUESTIONS = ("How many {thing} does {owner} have now?", "How many {thing} does {owner} have?")
_DISTRACTORS = ("{owner} also has {amount} {thing}.", "{owner} also sees {amount} {thing}.")
_CHANGES: dict[str, tuple[str, ...]] = {
    "+": (
        "{owner} buys {amount} more {thing}.",
        "{owner} finds {amount} {thing}.",
        "{owner} gets {amount} more {thing}.",
    ),
    "-": (
        "{owner} loses {amount} {thing}.",
        "{owner} sells {amount} {thing}.",
        "{owner} gives away {amount} {thing}.",
    ),
    "*": ("Then {owner} has {amount} times as many {thing}.",),
    "/": ("{owner} loses half of the {thing}.", "{owner} sells half of the {thing}."),
}
_COMPARISONS: dict[str, tuple[str, ...]] = {
    "+": ("{owner} has {amount} more {thing} than {other}.",),
    "-": ("{owner} has {amount} fewer {thing} than {other}.",),
    "*": ("{owner} has {amount} times as many {thing} as {other}.",),
    "/": ("{owner} has half as many {thing} as {other}.",),
}


def final_question(problem: Problem) -> str:
    """Return the closing question, which holds no fact."""
    return _pick(_QUESTIONS, problem.wordings[-1]).format(owner=problem.owners[-1], thing=problem.thing)


def sentences(problem: Problem) -> list[str]:
    """Return one text per fact; a distractor stands with the fact it follows."""
    texts = [
        _pick(_STARTS, problem.wordings[0]).format(owner=problem.owners[0], amount=problem.start, thing=problem.thing)
    ]
    for index, step in enumerate(problem.operations, start=1):
        other, owner = problem.owners[index - 1 : index + 1]
        wordings = _CHANGES if owner == other else _COMPARISONS
        sentence = _pick(wordings[step.symbol], problem.wordings[index])
        texts.append(sentence.format(owner=owner, other=other, amount=step.amount, thing=problem.thing))
    extra = problem.distractor
    if extra is not None:
        sentence = _pick(_DISTRACTORS, extra.wording)
        texts[extra.after] += " " + sentence.format(owner=extra.owner, amount=extra.amount, thing=extra.thing)
    return texts


def _pick(wordings: tuple[str, ...], choice: int) -> str:
    return wordings[choice % len(wordings)]
