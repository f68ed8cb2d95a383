"""Prompt sets: complete, and filled in one pass."""

from importlib.resources import files

import pytest

from latentmas.agents import CHAIN_ROLES
from latentmas.errors import ConfigError, UnknownNameError
from latentmas.prompts import Use, load_prompts
from latentmas.samples import AnswerKind

SETS = sorted(
    entry.name.removesuffix(".yaml") for entry in files("latentmas.prompts").iterdir() if entry.name.endswith(".yaml")
)


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_every_role_use_and_answer_kind(name):
    prompts = load_prompts(name)
    assert set(prompts.answer_format) == set(AnswerKind)
    assert "{question}" in prompts.template("single", Use.SINGLE)
    for role in CHAIN_ROLES:
        assert "{question}" in prompts.template(role, Use.LATENT)
        assert "{context}" not in prompts.template(role, Use.LATENT)
        assert ("{context}" in prompts.template(role, Use.TEXT)) == (role != "planner")


def test_a_question_with_braces_is_not_filled_in():
    prompts = load_prompts("sequential")
    template = prompts.template("judger", Use.TEXT)
    [_, user] = prompts.messages(template, question=r"{context} \frac{1}{2}", kind=AnswerKind.NUMBER, context="NOTES")
    assert r"{context} \frac{1}{2}" in user.content
    assert user.content.count("NOTES") == 1
    assert r"\boxed{}" in user.content


def test_answer_kinds_end_differently():
    prompts = load_prompts("hierarchical")
    template = prompts.template("single", Use.SINGLE)
    ends = {prompts.messages(template, question="q", kind=kind)[-1].content for kind in AnswerKind}
    assert len(ends) == len(AnswerKind)


def test_the_digest_tells_sets_apart():
    assert len({load_prompts(name).digest for name in SETS}) == len(SETS)


def test_an_unknown_set_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'sequential'"):
        load_prompts("sequentiel")


def test_an_unknown_role_is_refused():
    with pytest.raises(ConfigError, match="role"):
        load_prompts("sequential").template("jester", Use.TEXT)
