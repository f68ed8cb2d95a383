"""Mistakes of people who use the package from Python: each is a typed error of one line that says what to do."""

from pathlib import Path

import pytest

from latentmas import Agent, AgentGraph, Program, Sampling, Session, Team, chain, load_team, parallel
from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import LatentMASError
from latentmas.experiment import runner
from latentmas.experiment.config import RunConfig
from latentmas.samples import Sample

USER = {"role": "user", "content": "x"}
REPLY = {"role": "assistant", "content": "x"}
SYSTEM = {"role": "system", "content": "x"}
ONE = Agent(name="a", role="judger")
SAMPLE = Sample(id="a", question="x", target="")


class Store:
    def append(self, record):
        raise AssertionError("nothing may be stored")


@pytest.fixture(scope="module")
def team(model_folder):
    return Team(str(model_folder), latent_steps=1, max_new_tokens=2)


def opened(**named):
    """Return a mistake in opening a team."""
    return lambda team: Team(named.pop("model_name", "scripted"), **named)


def asked(question, **named):
    return lambda team: team.ask(question, **named)


def ask_all(questions):
    return lambda team: team.ask_all(questions)


def begun(team):
    return Session(team.backend).read("a", "hi")


def run(samples=(SAMPLE,), **named):
    def mistake(team):
        given = {"method": team.method, "backend": ScriptedBackend(), "store": Store(), "seed": 1, **named}
        runner.run(samples, **given)

    return mistake


MISTAKES = {
    "ask_all takes a list, not 'abc'": ask_all("abc"),
    "ask_all takes a list, not None": ask_all(None),
    "ask_all takes no dialogue": ask_all([USER]),
    "ask_all takes no numbers": ask_all(["x", 5]),
    "ask takes no number": asked(3),
    "ask takes no bytes": asked(b"x"),
    "ask takes no blank": asked(" \n"),
    "ask takes no empty dialogue": asked([]),
    "ask takes no single message": asked(USER),
    "ask takes no list of texts": asked(["x", "y"]),
    "a question has whole characters": asked("x\ud800"),
    "the user comes last": asked([USER, REPLY]),
    "the system comes first": asked([USER, SYSTEM, USER]),
    "nobody else talks": asked([{"role": "tool", "content": "x"}, USER]),
    "messages have a content": asked([{"role": "user"}]),
    "contents are texts": asked([{"role": "user", "content": None}]),
    "parts are texts": asked([{"role": "user", "content": [{"type": "image_url"}]}]),
    "messages have nothing else": asked([{**USER, "tool_calls": [1]}]),
    "a system message is a text": asked("x", system=5),
    "there is one system message": asked([SYSTEM, USER], system="y"),
    "an answer kind is known": opened(answer_kind="text"),
    "an answer kind is not None": opened(answer_kind=None),
    "a graph is no list": opened(graph=[ONE]),
    "a graph is no name": opened(graph="chain"),
    "a graph or a topology": opened(graph=chain([ONE]), options={"topology": "parallel"}),
    "a model has a name": opened(model_name=None),
    "a model folder is there": opened(model_name="./missing"),
    "a model is no address": opened(model_name="https://huggingface.co/Qwen/Qwen3-4B"),
    "a method is known": opened(method="latent"),
    "a prompt set is known": opened(prompt="sequentiel"),
    "steps are a number": opened(latent_steps="many"),
    "steps are whole": opened(latent_steps=2.5),
    "a temperature is finite": opened(temperature=float("nan")),
    "a batch has rows": opened(generate_bs=0),
    "a seed is a number": opened(seed=None),
    "a dtype is known": opened(dtype="fp16"),
    "options are a mapping": opened(options=["filter"]),
    "options are known": opened(options={"fliter": "knn"}),
    "options are given once": opened(options={"seed": 1}),
    "options are of a team": opened(options={"max_samples": 3}),
    "a task is known": opened(options={"task": "gsm9k"}),
    "engine options need an engine": opened(vllm_options={"a": 1}),
    "engine options are plain": opened(use_vllm=True, vllm_options={"a": object()}),
    "a chain is no text": lambda team: chain("abc"),
    "a chain has agents": lambda team: parallel(["planner", "judger"]),
    "a chain is a list": lambda team: chain(ONE),
    "a chain has someone": lambda team: chain([]),
    "agents count steps": lambda team: Agent(name="a", role="b", latent_steps="5"),
    "agents have names": lambda team: Agent(name="", role="b"),
    "agents read texts": lambda team: Agent(name="a", role="b", latent_prompt=5),
    "agents have prompts that say something": lambda team: Agent(name="a", role="b", latent_prompt=" "),
    "placeholders are spelled right": lambda team: Agent(name="a", role="b", text_prompt="Solve: {qestion}"),
    "edges are pairs": lambda team: AgentGraph((ONE, Agent(name="b", role="judger")), ("ab",)),
    "edges are there": lambda team: AgentGraph((ONE,), None),
    "edges join names": lambda team: AgentGraph((ONE,), ((1, 2),)),
    "a graph has agents": lambda team: AgentGraph(("a", "b")),
    "a team file has a path": lambda team: load_team(None),
    "a team file is no mapping": lambda team: load_team({"agents": []}),
    "a temperature of sampling is a number": lambda team: Sampling(temperature="1"),
    "top-k is whole": lambda team: Sampling(top_k=2.5),
    "top-p is no switch": lambda team: Sampling(top_p=True),
    "a program is no text": lambda team: Program("abc"),
    "a program has steps": lambda team: Program(["read"]),
    "a program is not None": lambda team: Program(None),
    "a config has a method": lambda team: RunConfig(),
    "a config knows its options": lambda team: RunConfig(method="latent_mas", model_name="tiny", latent_step=3),
    "a config is a mapping": lambda team: RunConfig.from_options(None),
    "a team file is there": lambda team: load_team(Path("missing.yaml")),
    "a session takes a backend": Session,
    "a session takes this backend": lambda team: Session(ScriptedBackend()),
    "a session has a seed": lambda team: Session(team.backend, seed="x"),
    "a session loads files elsewhere": lambda team: Session(team.backend, memory="memory.safetensors"),
    "a session tells a text": lambda team: Session(team.backend, system=["x"]),
    "a memory file is there": lambda team: Session.load(team.backend, "missing.safetensors"),
    "a memory file has a path": lambda team: Session.load(team.backend, None),
    "agents read text": lambda team: Session(team.backend).read("a", 5),
    "agents read whole characters": lambda team: Session(team.backend).read("a", "x\ud800"),
    "agents are names": lambda team: Session(team.backend).read(5, "x"),
    "thoughts are counted": lambda team: begun(team).think("a", "5"),
    "thoughts are not negative": lambda team: begun(team).think("a", -1),
    "who thinks has read": lambda team: begun(team).think("b", 1),
    "who writes has read": lambda team: begun(team).write("b"),
    "somebody has read": lambda team: Session(team.backend).write("a"),
    "something is written": lambda team: begun(team).write("a", 0),
    "a text fits": lambda team: begun(team).write("a", 10**6),
    "sampling is no number": lambda team: begun(team).write("a", 4, 0.7),
    "a filter is no name": lambda team: begun(team).hand_over("a", "knn"),
    "storage is no name": lambda team: begun(team).hand_over("a", storage="int8"),
    "who hands over is there": lambda team: begun(team).hand_over("b"),
    "a reader reads something": lambda team: begun(team).hand_over("a", reader="b"),
    "a fork has a seed": lambda team: begun(team).fork("x"),
    "a folder is there": lambda team: begun(team).save("/no/such/folder/memory.safetensors"),
    "a file is a path": lambda team: begun(team).save(5),
    "a run has samples": run("abc"),
    "samples are samples": run([{"id": "a"}]),
    "samples have ids of their own": run([SAMPLE, SAMPLE]),
    "a run has a store": run(store=None),
    "a run has a method": run(method="latent_mas"),
    "a run has a backend": run(backend="scripted"),
    "a run has a seed": run(seed="x"),
    "programs are programs": lambda team: team.backend.run(["x"]),
    "programs are a list": lambda team: team.backend.run(begun(team).program),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_a_typed_error_of_one_line(team, mistake):
    with pytest.raises(LatentMASError) as error:
        mistake(team)
    assert "\n" not in str(error.value)
    assert 20 < len(str(error.value)) < 250


def test_a_mistake_costs_nothing_that_was_there(team):
    session = begun(team)
    steps, slots = len(session.program.steps), session.memory.slots
    for mistake in (
        lambda: session.think("b", 1),
        lambda: session.write("a", "4"),
        lambda: session.read("a", 5),
        lambda: session.hand_over("a", "knn"),
    ):
        with pytest.raises(LatentMASError):
            mistake()
    assert (len(session.program.steps), session.memory.slots) == (steps, slots)
    assert session.write("a", 2) == begun(team).write("a", 2)


def test_a_closed_team_says_so():
    closed = Team("scripted", max_new_tokens=2)
    assert closed.ask("x").text
    closed.close()
    with pytest.raises(LatentMASError, match="closed"):
        closed.ask("x")


def test_a_path_and_a_plain_answer_kind_are_no_mistakes(model_folder):
    team = Team(model_folder, method="baseline", max_new_tokens=2, answer_kind="choice")
    assert team.ask("x").agents[0].prompt


def test_a_team_says_of_a_missing_folder_what_a_run_says():
    with pytest.raises(LatentMASError, match=r"there is no model folder './missing'; give a local folder"):
        Team("./missing")
