"""Teams: who hears whom, and what a team file may say."""

import re
from pathlib import Path

import pytest

from latentmas.agents import Agent, AgentGraph, chain, load_team, parallel, parse_team
from latentmas.errors import ConfigError

TEAM = """\
description: two who check each other
agents:
  - name: solver
    role: planner
    latent_steps: 7
  - name: judge
    prompt:
      latent: "Decide: {question}"
      text: "Decide: {question} {context}"
"""


def test_the_default_chain_has_the_four_agents_of_the_paper():
    graph = chain()
    assert [agent.name for agent in graph.agents] == ["planner", "critic", "refiner", "judger"]
    assert graph.is_chain
    assert graph.sink.name == "judger"
    assert [agent.name for agent in graph.heard_by("refiner")] == ["planner", "critic"]


def test_a_team_file_without_edges_is_a_chain_in_its_order():
    graph = parse_team(TEAM)
    assert graph.edges == {("solver", "judge")}
    assert graph.agents[0].latent_steps == 7
    assert graph.agents[1].text_prompt == "Decide: {question} {context}"


def test_a_prompt_of_one_string_serves_both_ways_of_talking():
    graph = parse_team("agents:\n  - name: a\n    prompt: Hello {question}\n")
    assert graph.agents[0].text_prompt == graph.agents[0].latent_prompt == "Hello {question}"


def test_agents_are_sorted_so_that_speakers_come_first():
    agents = tuple(Agent(name=name, role=name) for name in ("last", "first", "middle"))
    graph = AgentGraph(agents, frozenset({("first", "middle"), ("middle", "last")}))
    assert [agent.name for agent in graph.agents] == ["first", "middle", "last"]


def test_agents_that_do_not_reach_each_other_do_not_hear_each_other():
    agents = tuple(Agent(name=name, role=name) for name in "abc")
    graph = AgentGraph(agents, frozenset({("a", "c"), ("b", "c")}))
    assert not graph.is_chain
    assert graph.heard_by("b") == ()
    assert [agent.name for agent in graph.heard_by("c")] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "agents:\n  - name: a\n    role: planner\n  - name: a\n    role: critic\n",
            r"line 4, agents\[1\].name: two agents are called 'a'",
        ),
        ("agents:\n  - name: a\n    role: x\n    latent_steps: -1\n", r"line 4, agents\[0\].latent_steps: "),
        ("agents:\n  - name: a\n    role: x\n    colour: red\n", r"line 4, agents\[0\].colour: "),
        ("agents:\n  - role: x\n", r"line 2, agents\[0\].name: "),
        ("agents:\n  - name: a\n", r"line 2, agents\[0\]: 'a' has neither a role nor a prompt"),
        ("agents: []\n", r"line 1, agents: "),
        (
            "agents:\n  - {name: a, role: x}\n  - {name: b, role: x}\nedges:\n  - [a, b]\n  - [b, a]\n",
            r"line 5, edges: the team has a cycle: a -> b -> a|line 5, edges: the team has a cycle: b -> a -> b",
        ),
        ("agents:\n  - {name: a, role: x}\nedges:\n  - [a, z]\n", r"line 4, edges: an edge names 'z'"),
        ("agents:\n  - {name: a, role: x}\n  - {name: b, role: x}\nedges: []\n", r"2 agents have nobody to speak to"),
        ("agents:\n  - {name: a, role: x\n", r"line \d+: no valid YAML"),
        ("- just\n- a list\n", r"line 1, top level"),
        ("agents:\n  - name: a\n    prompt: {tex: hello}\n", r"line 3, agents\[0\].prompt.tex: is no field"),
        ("agents:\n  - name: a\n    prompt: {text: 3}\n", r"line 3, agents\[0\].prompt.text: expected text"),
        (
            "agents:\n  - name: a\n    prompt: [x]\n",
            r"line 3, agents\[0\].prompt: expected text, or a mapping .* a list$",
        ),
        ("agents:\n  - 2020-01-01\n", r"line 2, agents\[0\]: expected a mapping, found a date"),
        ("agents: few\n", r"line 1, agents: expected a list, found text$"),
        ("2020-01-01: x\nagents: []\n", r"line 1: a key must be text, and this one is '2020-01-01'"),
        ("agents:\n  - [1, 2]: x\n", r"line 2: a key must be text, and this one is a list"),
        ("agents:\n  - name: a\n    role: x\n    role: y\n", r"line 4: 'role' stands here a second time, .* line 3$"),
        ("agents:\n  - {name: 2020-13-45, role: x}\n", r"put it in quotes \(month must be"),
        ('agents:\n  - {name: "\\ud800", role: x}\n', r"line 2, agents\[0\].name: holds half of a surrogate"),
    ],
)
def test_an_error_in_a_team_file_names_line_and_field(text, complaint):
    with pytest.raises(ConfigError) as error:
        parse_team(text, "team.yaml")
    assert re.search(complaint, str(error.value)), str(error.value)
    assert str(error.value).startswith("team.yaml")


def test_a_missing_team_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_team(tmp_path / "nowhere.yaml")


def test_a_team_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "team.yaml"
    path.write_bytes(b"agents:\n  - name: caf\xe9\n    role: x\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_team(path)


def test_the_example_team_is_a_chain_with_a_prompt_of_its_own():
    graph = load_team(Path(__file__).parents[1] / "examples" / "team.yaml")
    assert graph.is_chain
    assert "{context}" in (graph.agents[1].text_prompt or "")


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ('""', "blank"),
        ('"Solve {questoin}"', "did you mean {question}"),
        ('"{Question}"', "did you mean"),
        ('"Solve{questoin}"', "did you mean {question}"),
        ('"{ question }"', "did you mean {question}"),
        ('"{answer-format}"', "did you mean {answer_format}"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'"\\ud800"', None),
    ],
)
def test_a_prompt_that_would_not_say_what_it_should_is_refused(prompt, complaint):
    text = f"agents:\n  - name: a\n    prompt: {prompt}\n"
    if complaint is None:
        parse_team(text)  # an escaped backslash is plain text
        return
    with pytest.raises(ConfigError, match=re.escape(complaint)) as error:
        parse_team(text, "team.yaml")
    assert "line 3, agents[0].prompt" in str(error.value)


def test_latex_braces_in_a_prompt_are_left_alone():
    prompt = r"{question} End with \boxed{\text{Question}} or \frac{1}{questions}, {like} so."
    assert parse_team(f"agents:\n  - name: a\n    prompt: '{prompt}'\n").agents[0].text_prompt == prompt


def test_a_team_file_nested_beyond_reason_is_refused():
    with pytest.raises(ConfigError, match="too deeply"):
        parse_team("[" * 3000)


def test_independent_experts_are_heard_by_the_last_one_only():
    graph = parallel()
    assert [agent.name for agent in graph.sources("judger")] == ["planner", "critic", "refiner"]
    assert all(not graph.heard_by(name) for name in ("planner", "critic", "refiner"))
    with pytest.raises(ConfigError, match="at least one agent"):
        parallel([])


def test_a_topology_wires_a_team_file_that_does_not_do_it_itself():
    listed = "agents: [{name: a, role: planner}, {name: b, role: planner}, {name: c, role: judger}]\n"
    assert parse_team(listed, wiring=parallel).edges == {("a", "c"), ("b", "c")}
    assert parse_team(listed).edges == {("a", "b"), ("b", "c")}
    with pytest.raises(ConfigError, match="who hears whom; drop --topology"):
        parse_team(f"{listed}edges: [[a, c], [b, c]]\n", wiring=parallel)


def test_whom_an_agent_hears_through_another_is_no_source_of_its_own():
    members = tuple(Agent(name=name, role="planner") for name in "abcd")
    graph = AgentGraph(members, frozenset({("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "d")}))
    assert [agent.name for agent in graph.sources("d")] == ["b", "c"]


def test_an_empty_chain_is_no_team():
    with pytest.raises(ConfigError, match="at least one agent"):
        chain([])


def test_edges_may_be_given_as_a_list():
    agents = (Agent(name="p", role="planner"), Agent(name="j", role="judger"))
    assert AgentGraph(agents, [("p", "j")]).is_chain
