"""Prompt sets: complete, filled in one pass, and read from a file without a letter added or lost."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from latentmas.agents import CHAIN_ROLES
from latentmas.errors import ConfigError, UnknownNameError
from latentmas.prompts import Use, load_prompts, parse_prompts
from latentmas.samples import AnswerKind

SETS = sorted(
    entry.name.removesuffix(".yaml") for entry in files("latentmas.prompts").iterdir() if entry.name.endswith(".yaml")
)
NUMBER = AnswerKind.NUMBER

FILE = r"""
system: "You are a clerk. Be of help."
context_entry: "<{agent}>\n{text}\n"
old_prompt_entry: "[{agent}: {prompt}]"
names: {planner: The Planner}
topology: {text: parallel}
answer_format:
  number: Give a number.
  choice: Give a letter.
  winogrande: Give 1 or 2.
agents:
  single:
    single: |

      {question}

      In the form \boxed{YOUR_ANSWER}. {answer_format}

  planner:
    text: "Plan {question}"
    latent:
      number: "Number plan {question}"
      medqa: "Patient plan {question}"
  judger:
    text: "{context}Now {question}"
    latent: "{question} {old_prompts}?"
"""


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_every_role_use_and_answer_kind(name):
    prompts = load_prompts(name)
    for kind in AnswerKind:
        assert prompts.ending(kind)
        assert "{question}" in prompts.template("single", Use.SINGLE, kind)
    for role in CHAIN_ROLES:
        assert "{question}" in prompts.template(role, Use.LATENT, NUMBER)
        assert "{context}" not in prompts.template(role, Use.LATENT, NUMBER)
        assert ("{context}" in prompts.template(role, Use.TEXT, NUMBER)) == (role != "planner")
    assert prompts.entry("planner", "words")
    assert prompts.old_prompt("planner", "words")


def test_a_question_with_braces_is_not_filled_in():
    prompts = load_prompts("sequential")
    template = prompts.template("judger", Use.TEXT, NUMBER)
    ending = prompts.ending(NUMBER)
    [_, user] = prompts.messages(template, question=r"{context} \frac{1}{2}", ending=ending, context="NOTES")
    assert r"{context} \frac{1}{2}" in user.content
    assert user.content.count("NOTES") == 1
    assert r"\boxed{" in user.content


def test_answer_kinds_end_differently():
    prompts = load_prompts("hierarchical")
    assert len({prompts.ending(kind) for kind in AnswerKind}) == len(AnswerKind)


@pytest.mark.parametrize("name", ["sequential", "hierarchical"])
@pytest.mark.parametrize("kind", AnswerKind)
def test_every_way_to_end_asks_for_steps_and_shows_its_form(name, kind):
    ending = load_prompts(name).ending(kind)
    assert "step by step" in ending.lower()
    assert ("```python\n" if kind is AnswerKind.CODE else r"\boxed{") in ending


def test_the_digest_tells_sets_apart_and_is_not_moved_by_a_description():
    assert len({load_prompts(name).digest for name in SETS}) == len(SETS)
    plain = parse_prompts(FILE)
    assert parse_prompts(f"description: words for people\n{FILE}").digest == plain.digest
    for old, new in (
        ("Be of help", "Be"),
        ("Give 1 or 2", "Give 2"),
        ("The Planner", "Planner"),
        ("<{agent}>", "{agent}"),
    ):
        assert parse_prompts(FILE.replace(old, new)).digest != plain.digest


def test_an_unknown_set_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'sequential'"):
        load_prompts("sequentiel")


def test_an_unknown_role_is_refused():
    with pytest.raises(ConfigError, match="role"):
        load_prompts("sequential").template("jester", Use.TEXT, NUMBER)


def test_what_stands_in_a_file_is_what_an_agent_reads():
    prompts = parse_prompts(FILE)
    template = prompts.template("single", Use.SINGLE, NUMBER)
    question = " {answer_format} {text}\n  1 < 2 \\n"
    [system, user] = prompts.messages(template, question=question, ending=prompts.ending(NUMBER))
    assert (system.role, system.content) == ("system", "You are a clerk. Be of help.")
    assert user.content == f"\n{question}\n\nIn the form \\boxed{{YOUR_ANSWER}}. Give a number.\n"
    assert prompts.entry("The Planner", "{agent} {text}") == "<The Planner>\n{agent} {text}\n"
    assert prompts.old_prompt("x", "{agent}") == "[x: {agent}]"


def test_words_for_a_task_come_before_those_of_its_answer_kind():
    prompts = parse_prompts(FILE)
    assert prompts.ending(AnswerKind.CHOICE, "winogrande") == "Give 1 or 2."
    assert prompts.ending(AnswerKind.CHOICE, "medqa") == prompts.ending(AnswerKind.CHOICE) == "Give a letter."
    assert prompts.template("planner", Use.LATENT, AnswerKind.CHOICE, "medqa") == "Patient plan {question}"
    assert prompts.template("planner", Use.LATENT, NUMBER, "gsm8k") == "Number plan {question}"
    assert prompts.tasks == {"winogrande", "medqa"}


def test_what_a_file_lacks_is_named_with_its_line():
    prompts = parse_prompts(FILE, "mine.yaml")
    with pytest.raises(
        ConfigError, match=r"mine.yaml, line 21, agents.planner.latent: .*'choice' .*only for: number, m"
    ):
        prompts.template("planner", Use.LATENT, AnswerKind.CHOICE, "arc_easy")
    with pytest.raises(ConfigError, match=r"mine.yaml, line 7, answer_format: .*'code'"):
        prompts.ending(AnswerKind.CODE)
    with pytest.raises(ConfigError, match=r"mine.yaml, line 12, agents.single: role 'single' has no text prompt"):
        prompts.template("single", Use.TEXT, NUMBER)
    with pytest.raises(ConfigError, match=r"no role of mine.yaml, line 11, agents is called 'critic'"):
        prompts.template("critic", Use.TEXT, NUMBER)
    bare = parse_prompts("agents: {planner: {text: '{question}'}}", "bare.yaml")
    for asks in (bare.entry, bare.old_prompt):
        with pytest.raises(ConfigError, match=r"bare.yaml has no (context|old_prompt)_entry"):
            asks("a", "b")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "agents:\n  planner:\n    text: 3\n",
            r"line 3, agents\.planner\.text: expected text, or a mapping .*a number$",
        ),
        ("agents:\n  planner:\n    txt: x\n", r"line 3, agents\.planner\.txt: expected 'single', 'text' or 'latent'"),
        ("agents:\n  planner: {}\n", r"line 2, agents\.planner: expected at least one"),
        ("agents:\n  planner: plan\n", r"line 2, agents\.planner: expected .* found text$"),
        ("agents: []\n", r"line 1, agents: expected a mapping, found a list"),
        ("system: x\n", r"line 1, agents: is missing"),
        ("- a\n", r"line 1, top level: expected 'agents:'"),
        ("agents: {a: {text: x}}\nsytem: y\n", r"line 2, sytem: is no field of a prompt file"),
        ("agents: {a: {text: x}}\nsystem: [y]\n", r"line 2, system: expected text, in quotes if need be, found a list"),
        ("agents: {a: {text: x}}\nnames:\n  b: B\n", r"line 3, names\.b: there are no prompts for role 'b'"),
        ("agents: {a: {text: x}}\nnames:\n  a: 1\n", r"line 3, names\.a: expected a text, found a number"),
        (
            "agents: {a: {text: x}}\ntopology:\n  text: ring\n",
            r"line 3, topology\.text: expected 'chain' or 'parallel'",
        ),
        (
            "agents: {a: {text: x}}\ncontext_entry: '{agent} {txt}'\n",
            r"line 2, context_entry: \{txt\} is no placeholder",
        ),
        ("agents: {a: {text: x}}\ncontext_entry: '{agent}'\n", r"line 2, context_entry: has no \{text\}"),
        ("agents: {a: {text: x}}\nold_prompt_entry: x\n", r"line 2, old_prompt_entry: has no \{prompt\}"),
        (
            "agents:\n  a:\n    text: '{questoin}'\n",
            r"line 3, agents\.a\.text: \{questoin\} is no placeholder; did you",
        ),
        ("agents:\n  a:\n    text:\n      chioce: x\n", r"line 4, agents\.a\.text\.chioce: .*did you mean 'choice'"),
        ("agents:\n  a:\n    text:\n      choice: ' '\n", r"line 4, agents\.a\.text\.choice: the prompt is blank"),
        ("agents:\n  single:\n    single: Answer.\n", r"line 3, agents\.single\.single: has no \{question\}"),
        ("agents: {a: {text: x}}\nagents: {}\n", r"line 2: 'agents' stands here a second time"),
        ("agents: {a: {text: x}\n", r"line \d: no valid YAML"),
    ],
)
def test_an_error_in_a_prompt_file_names_line_and_field(text, complaint):
    with pytest.raises(ConfigError) as error:
        parse_prompts(text, "mine.yaml")
    assert str(error.value).startswith("mine.yaml")
    assert re.search(complaint, str(error.value)), str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"prompt file .*nowhere\.yaml' cannot be read"):
        load_prompts(str(tmp_path / "nowhere.yaml"))


def test_the_example_file_serves_every_method():
    prompts = load_prompts(str(Path(__file__).parents[1] / "examples" / "prompts.yaml"))
    for kind in AnswerKind:
        assert prompts.template("single", Use.SINGLE, kind)
        for role in CHAIN_ROLES:
            assert prompts.template(role, Use.TEXT, kind)
            assert prompts.template(role, Use.LATENT, kind)
