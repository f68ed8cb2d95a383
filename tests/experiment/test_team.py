"""Team: the library face."""

import pytest

from latentmas import Agent, AgentGraph, Team, chain
from latentmas.errors import ConfigError, SampleError, UnknownNameError


def test_a_team_answers_and_shows_what_each_agent_did(model_folder):
    team = Team(str(model_folder), latent_steps=2, max_new_tokens=6)
    record = team.ask("what is 1 + 1?")
    assert [agent.name for agent in record.agents] == ["planner", "critic", "refiner", "judger"]
    assert [agent.thoughts for agent in record.agents] == [2, 2, 2, 0]
    assert record.verdict is None
    assert record.text == record.agents[-1].text


def test_answers_come_in_the_order_of_the_questions(model_folder):
    team = Team(str(model_folder), latent_steps=1, max_new_tokens=4, generate_bs=2)
    questions = [f"what is {n} + {n}?" for n in range(5)]
    together = team.ask_all(questions)
    assert [record.question for record in together] == questions
    assert [record.text for record in together] == [team.ask(question).text for question in questions]


def test_a_team_of_ones_own(model_folder):
    agents = [Agent(name="one", role="planner", latent_steps=3), Agent(name="two", role="judger")]
    record = Team(str(model_folder), graph=chain(agents), max_new_tokens=4).ask("why?")
    assert [(agent.name, agent.role, agent.thoughts) for agent in record.agents] == [
        ("one", "planner", 3),
        ("two", "judger", 0),
    ]


@pytest.mark.parametrize("model", ["scripted", "weights"])
def test_a_record_of_a_debate_has_each_agent_once_with_what_it_cost(model, model_folder):
    names = ["a1", "b1", "a2", "b2", "a3", "b3", "judge"]
    agents = [Agent(name=name, role="critic", latent_steps=number + 1) for number, name in enumerate(names[:-1])]
    hears = [(one, other) for turn in (0, 2) for one in names[turn : turn + 2] for other in names[turn + 2 : turn + 4]]
    edges = frozenset([*hears, ("a3", "judge"), ("b3", "judge")])
    graph = AgentGraph((*agents, Agent(name="judge", role="judger")), edges)
    name = "scripted" if model == "scripted" else str(model_folder)
    record = Team(name, graph=graph, max_new_tokens=4).ask("why?")
    assert [agent.name for agent in record.agents] == names
    assert [agent.thoughts for agent in record.agents] == [1, 2, 3, 4, 5, 6, 0]
    assert all(len(agent.prompt_ids) == agent.prompt_tokens for agent in record.agents)
    made = sum(agent.prompt_tokens + agent.thoughts for agent in record.agents)
    assert made <= record.agents[-1].memory_slots <= made + 4
    first, _, second, _, third, *_ = (agent.memory_slots for agent in record.agents)
    assert second - first == sum(agent.prompt_tokens + agent.thoughts for agent in record.agents[1:3])
    assert third - second == sum(agent.prompt_tokens + agent.thoughts for agent in record.agents[3:5])
    if model == "weights":
        assert all(agent.seconds > 0 for agent in record.agents)


def test_a_question_that_cannot_be_answered_says_why(model_folder):
    with pytest.raises(SampleError, match="4096"):
        Team(str(model_folder), max_new_tokens=4096).ask("hello")


def test_an_option_that_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="latent_steps"):
        Team("tiny", latent_steps=-1)


def test_an_unknown_method_is_refused_instead_of_becoming_another():
    with pytest.raises(UnknownNameError, match="latent_mas"):
        Team("tiny", method="latent_max")


def test_what_is_sampled_does_not_depend_on_what_else_is_asked(model_folder):
    team = Team(str(model_folder), latent_steps=1, max_new_tokens=8, temperature=1.2)
    alone = team.ask("why?").text
    assert [record.text for record in team.ask_all(["how?", "why?"])][1] == alone
