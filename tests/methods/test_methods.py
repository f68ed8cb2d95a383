"""What each method asks a model to do, seen through the scripted backend."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from latentmas.agents import Agent, AgentGraph, chain, parallel
from latentmas.backends.scripted import ByteCodec, ScriptedBackend
from latentmas.errors import ConfigError
from latentmas.methods import baseline, latent_mas, text_mas
from latentmas.methods.compile import BranchOrder, HandoverAt, Recipe, latent_program
from latentmas.methods.controls import Control, control, donors
from latentmas.program import (
    Budget,
    Count,
    Handover,
    Join,
    KeepSpec,
    Program,
    Read,
    Recall,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.prompts import load_prompts, parse_prompts
from latentmas.protocols import StepAccount
from latentmas.samples import AnswerKind, Sample

SAMPLES = [Sample(id=f"s{n}", question=f"what is {n} + {n}?", target=str(2 * n)) for n in range(7)]


def recipe(**changes):
    plain = Recipe(
        graph=chain(),
        prompts=load_prompts("sequential"),
        codec=ByteCodec(),
        kind=AnswerKind.NUMBER,
        max_new_tokens=40,
        latent_steps=3,
    )
    return dataclasses.replace(plain, **changes)


def solved(method, sample, backend):
    """Drive a generator to its end; return the programs it yielded and its answer."""
    generator = method.solve(sample)
    programs, completion = [], None
    while True:
        try:
            program = generator.send(completion) if programs else next(generator)
        except StopIteration as end:
            return programs, end.value
        programs.append(program)
        [completion] = backend.run([program])


class Marked:
    """A codec whose texts have marks of thinking: every Q."""

    def __init__(self):
        self._bytes = ByteCodec()

    def __getattr__(self, name):
        return getattr(self._bytes, name)

    def decode(self, tokens, *, marks=True):
        text = self._bytes.decode(tokens)
        return text if marks else text.replace("Q", "")


def test_agents_read_each_other_without_marks_of_thinking():
    method = text_mas.build(recipe(codec=Marked()))
    programs, answer = solved(method, SAMPLES[0], ScriptedBackend(reply="Qperhaps 4Q four"))
    assert "perhaps 4 four" in programs[-1].steps[0].text
    assert answer.text == "Qperhaps 4Q four"


def verbs(program):
    return " ".join(type(step).__name__ for step in program)


def test_baseline_is_one_read_and_one_write():
    programs, answer = solved(baseline.build(recipe()), SAMPLES[1], ScriptedBackend(reply="two"))
    assert [verbs(program) for program in programs] == ["Read Write"]
    assert answer.text == "two"
    assert "what is 1 + 1?" in programs[0].steps[0].text


def test_latent_mas_is_one_program_in_which_only_the_last_agent_writes():
    [program], _ = solved(latent_mas.build(recipe()), SAMPLES[0], ScriptedBackend(reply="x"))
    assert verbs(program) == "Read Think Handover " * 3 + "Read Write"
    assert program.agents == ("planner", "critic", "refiner", "judger")
    assert all(step.steps == 3 for step in program if isinstance(step, Think))


def test_zero_latent_steps_still_hand_over_memory():
    [program], _ = solved(latent_mas.build(recipe(latent_steps=0)), SAMPLES[0], ScriptedBackend(reply="x"))
    assert sum(isinstance(step, Handover) for step in program) == 3
    assert program.count().thoughts == 0


@pytest.mark.parametrize(
    ("at", "kept"),
    [(HandoverAt.FINAL, ["full", "full", "thoughts"]), (HandoverAt.EVERY, ["thoughts", "thoughts", "thoughts"])],
)
def test_handover_applies_where_it_is_said_to(at, kept):
    method = latent_mas.build(recipe(keep=KeepSpec(name="thoughts"), handover_at=at))
    program = method.program(SAMPLES[0])
    assert [step.keep.name for step in program if isinstance(step, Handover)] == kept


def test_handing_over_thoughts_that_nobody_thinks_is_refused():
    with pytest.raises(ConfigError, match="hands over nothing"):
        latent_mas.build(recipe(keep=KeepSpec(name="thoughts"), latent_steps=0))


def test_text_mas_shows_every_agent_what_all_before_it_wrote():
    backend = ScriptedBackend(reply=lambda turn: f"<{turn.agent} was here>")
    programs, answer = solved(text_mas.build(recipe()), SAMPLES[0], backend)
    texts = [program.steps[0].text for program in programs]
    assert [verbs(program) for program in programs] == ["Read Write"] * 4
    assert "was here" not in texts[0]
    assert "<planner was here>" in texts[1]
    assert all(f"<{name} was here>" in texts[3] for name in ("planner", "critic", "refiner"))
    assert answer.text == "<judger was here>"


def test_the_context_limit_in_characters_cuts_the_oldest_text():
    backend = ScriptedBackend(reply=lambda turn: f"<{turn.agent}>")
    whole = solved(text_mas.build(recipe()), SAMPLES[0], backend)[0][3].steps[0].text
    cut = solved(text_mas.build(recipe(), context_characters=12), SAMPLES[0], backend)[0][3].steps[0].text
    assert "<planner>" in whole
    assert "<planner>" not in cut
    assert "<refiner>" in cut
    assert (
        len(whole) - len(cut)
        == len("".join(f"## From the {n}\n<{n}>\n\n" for n in ("planner", "critic", "refiner"))) - 12
    )


def test_a_context_limit_of_zero_shows_nothing():
    backend = ScriptedBackend(reply=lambda turn: f"<{turn.agent}>")
    programs, _ = solved(text_mas.build(recipe(), context_characters=0), SAMPLES[0], backend)
    assert "<planner>" not in programs[3].steps[0].text


def test_the_context_limit_in_tokens_cuts_the_oldest_text():
    backend = ScriptedBackend(reply=lambda turn: f"<{turn.agent}>")
    cut = solved(text_mas.build(recipe(), context_tokens=12), SAMPLES[0], backend)[0][3].steps[0].text
    assert "<refiner>" in cut
    assert "<critic>" not in cut


def test_a_text_prompt_without_context_is_refused():
    deaf = [Agent(name="a", role="planner"), Agent(name="b", role="judger", text_prompt="Just answer: {question}")]
    with pytest.raises(ConfigError, match="'b'"):
        text_mas.build(recipe(graph=chain(deaf)))


def team(*edges: str, agents: str) -> AgentGraph:
    """Return a team of agents with names of one letter; an edge is two of them."""
    members = tuple(Agent(name=name, role="judger" if name == agents[-1] else "planner") for name in agents)
    return AgentGraph(members, frozenset((edge[0], edge[1]) for edge in edges))


def outline(program: Program) -> str:
    """Return a program in short: the first letter of each verb with its agent, branches in brackets."""
    words = []
    for step in program:
        if isinstance(step, Join):
            laid = "" if step.joined is None else ",".join(map(str, step.joined))
            words.append("[" + " | ".join(map(outline, step.branches)) + "]" + laid)
        elif isinstance(step, Recall):
            words.append("<" + ",".join(map(str, step.branches)))
        else:
            words.append(f"{type(step).__name__[0]}{step.agent}")
    return " ".join(words)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (team("ab", "bc", agents="abc"), "Ra Ta Ha Rb Tb Hb Rc Wc"),
        (team("ab", "bc", "ac", agents="abc"), "Ra Ta Ha Rb Tb Hb Rc Wc"),
        (team("ac", "bc", agents="abc"), "[Ra Ta | Rb Tb] Hb Rc Wc"),
        (team("ac", "bc", "cd", agents="abcd"), "[Ra Ta | Rb Tb] Hb Rc Tc Hc Rd Wd"),
        (
            team("ab", "ac", "bd", "cd", agents="abcd"),
            "[Ra Ta | <0 Ha Rb Tb | <0 Ha Rc Tc]1,2 Hc Rd Wd",
        ),
        (
            team("ac", "bc", "ad", "bd", "ce", "de", agents="abcde"),
            "[Ra Ta | Rb Tb | <0,1 Hb Rc Tc | <0,1 Hb Rd Td]2,3 Hd Re We",
        ),
        (
            team("ac", "bc", "ce", "de", agents="abcde"),
            "[Rd Td | Ra Ta | Rb Tb | <1,2 Hb Rc Tc]0,3 Hc Re We",
        ),
        (
            team("ad", "bd", "be", "ce", "df", "ef", "fg", agents="abcdefg"),
            "[Ra Ta | Rb Tb | <0,1 Hb Rd Td | Rc Tc | <1,3 Hc Re Te]2,4 He Rf Tf Hf Rg Wg",
        ),
    ],
    ids=["chain", "shortcut", "parallel", "two stages", "diamond", "mesh", "tree", "ladder"],
)
def test_any_team_compiles_to_what_its_agents_hear(graph: AgentGraph, expected: str):
    method = latent_mas.build(recipe(graph=graph))
    assert outline(method.program(SAMPLES[0])) == expected
    _, answer = solved(method, SAMPLES[0], ScriptedBackend(reply="x"))
    assert answer.text


def debate(rounds: int) -> AgentGraph:
    """Return two agents who hear both of the round before, and a judger who hears the last round."""
    letters = "abcdefghijklmnopqrstuvwxyz"[: 2 * rounds + 1]
    edges = [
        letters[2 * turn + speaker] + letters[2 * turn + 2 + hearer]
        for turn in range(rounds - 1)
        for speaker in range(2)
        for hearer in range(2)
    ]
    return team(*edges, letters[-3] + letters[-1], letters[-2] + letters[-1], agents=letters)


@pytest.mark.parametrize("options", [{}, {"keep": KeepSpec(name="last_agent"), "handover_at": HandoverAt.EVERY}])
def test_a_debate_grows_with_its_rounds_and_not_with_its_paths(options: dict[str, Any]):
    def cost(rounds: int) -> tuple[Program, Count, Sequence[StepAccount]]:
        program = latent_program(replace(recipe(graph=debate(rounds)), latent_steps=3, **options), SAMPLES[0])
        return program, program.count(), ScriptedBackend().run([program])[0].steps

    for rounds in range(2, 11):
        program, count, accounts = cost(rounds)
        speakers = 2 * rounds
        assert len(program.agents) == speakers + 1
        assert len(program.reads) == speakers + 1, "each agent reads once"
        assert count.thoughts == 3 * speakers
        assert count.prompt_tokens == sum(len(read.tokens) for read in program.reads)
        assert count.positions == count.prompt_tokens + count.thoughts + count.max_written_tokens
        branches = [account for branch in accounts[0].branches for account in branch]
        done = [*branches, *accounts[1:]]
        assert sum(account.prompt_tokens for account in done) == count.prompt_tokens
        assert sum(account.thoughts for account in done) == count.thoughts
        assert max(account.slots for account in done) <= count.max_slots
        if not options:
            assert accounts[-1].slots == count.prompt_tokens + count.thoughts + accounts[-1].forward_passes
    two, four, ten = (cost(rounds)[1] for rounds in (2, 4, 10))
    for name in ("prompt_tokens", "thoughts", "positions", "max_slots"):
        of_two, of_four, of_ten = (getattr(count, name) for count in (two, four, ten))
        assert of_ten - of_four <= 3 * (of_four - of_two), f"{name} of two, four and ten rounds: a line"


def test_a_prompt_is_quoted_once_however_many_paths_lead_to_it():
    quoting = replace(recipe(graph=debate(10)), include_old_prompts=True)
    read = latent_program(quoting, SAMPLES[0]).reads[-1]
    assert read.text.count(SAMPLES[0].question) == 21
    chained = replace(recipe(graph=team("ab", "bc", "ac", agents="abc")), include_old_prompts=True)
    assert latent_program(chained, SAMPLES[0]).reads[-1].text.count(SAMPLES[0].question) == 3


def test_the_order_of_branches_is_an_option_and_shuffled_by_sample():
    graph = team("ad", "bd", "cd", agents="abcd")

    def order(sample: Sample, branch_order: BranchOrder, seed: int = 1) -> str:
        made = latent_program(replace(recipe(graph=graph), branch_order=branch_order, seed=seed), sample)
        return "".join(made.agents)

    assert order(SAMPLES[0], BranchOrder.TEAM) == "abcd"
    assert order(SAMPLES[0], BranchOrder.REVERSED) == "cbad"
    many = [replace(SAMPLES[0], id=str(number)) for number in range(40)]
    shuffled = [order(sample, BranchOrder.SHUFFLED) for sample in many]
    assert len(set(shuffled)) == 6
    assert shuffled == [order(sample, BranchOrder.SHUFFLED) for sample in many]
    assert shuffled != [order(sample, BranchOrder.SHUFFLED, seed=2) for sample in many]


def test_what_agent_and_kind_decide_is_dropped_before_memories_are_joined():
    graph = team("ac", "bc", agents="abc")
    thoughts = KeepSpec(name="thoughts")
    some = KeepSpec(name="random", budget=Budget(amount=0.5))
    made = latent_program(replace(recipe(graph=graph), keep=thoughts, filter=some), SAMPLES[0])
    [join, handover, *_] = made
    assert all(branch.steps[-1].keep == thoughts for branch in join.branches)
    assert handover.keep == some


def test_noise_reaches_the_branches_of_a_join():
    method = latent_mas.build(recipe(graph=team("ac", "bc", agents="abc")), arm=Control.NOISE)
    thinks = [step for step in method.program(SAMPLES[0]).flat() if isinstance(step, Think)]
    assert [step.source for step in thinks] == [ThoughtSource.NOISE] * 2


def test_old_prompts_are_repeated_by_those_who_hear_them():
    plain = [step.text for step in latent_program(recipe(), SAMPLES[0]) if isinstance(step, Read)]
    repeated = [step.text for step in latent_program(replace(recipe(), include_old_prompts=True), SAMPLES[0]).reads]
    assert repeated[0] == plain[0]
    question = SAMPLES[0].question
    assert [text.count(question) for text in repeated] == [1, 2, 3, 4]


def test_old_prompts_are_quoted_as_what_others_were_told_and_hold_those_before_them():
    prompts = parse_prompts(
        'old_prompt_entry: "{agent} heard [{prompt}] "\n'
        "names: {planner: P, critic: C}\n"
        "agents:\n"
        "  planner: {latent: 'plan {question}'}\n"
        "  critic: {latent: 'doubt {old_prompts}!'}\n"
        "  judger: {latent: 'answer'}\n"
    )
    graph = chain([Agent(name=role, role=role) for role in ("planner", "critic", "judger")])
    made = recipe(prompts=prompts, graph=graph)
    asked = SAMPLES[1].question
    texts = ["plan " + asked, "doubt !", "answer"]
    assert [read.text for read in latent_program(made, SAMPLES[1]).reads] == [
        f"user: {text}\nassistant: " for text in texts
    ]
    second = f"doubt P heard [plan {asked}] !"
    texts = [f"plan {asked}", second, f"C heard [{second}] answer"]
    quoted = latent_program(replace(made, include_old_prompts=True), SAMPLES[1])
    assert [read.text for read in quoted.reads] == [f"user: {text}\nassistant: " for text in texts]


@pytest.mark.parametrize("name", ["sequential", "hierarchical"])
def test_a_judger_that_sees_old_prompts_is_told_that_they_were_for_others(name):
    made = recipe(prompts=load_prompts(name), include_old_prompts=True)
    *_, judger = latent_program(made, SAMPLES[0]).reads
    own = latent_program(replace(made, include_old_prompts=False), SAMPLES[0]).reads[-1]
    last = own.text.rpartition("user: ")[2]
    assert judger.text.endswith(last), "its own instructions come last, whole"
    assert judger.text.count("not\nmeant for you") == 3


def test_old_prompts_without_a_frame_are_refused():
    bare = parse_prompts("agents:\n  planner: {latent: 'plan'}\n  judger: {latent: '{question}'}\n", "bare.yaml")
    pair = chain([Agent(name="planner", role="planner"), Agent(name="judger", role="judger")])
    assert latent_mas.build(recipe(prompts=bare, graph=pair))
    with pytest.raises(ConfigError, match=r"bare.yaml has no old_prompt_entry"):
        latent_mas.build(recipe(prompts=bare, graph=pair, include_old_prompts=True))


def test_texts_are_pasted_without_the_blanks_around_them_and_under_the_names_of_the_prompt_set():
    backend = ScriptedBackend(reply="\n  two\n words \n\n")
    made = recipe(prompts=load_prompts("hierarchical"), graph=parallel())
    programs, answer = solved(text_mas.build(made), SAMPLES[0], backend)
    texts = [program.steps[0].text for program in programs]
    assert "two" not in texts[0] + texts[1] + texts[2]
    entries = "".join(f"## From the {name}\ntwo\n words\n\n" for name in ("mathematician", "scientist", "programmer"))
    assert entries in texts[3]
    assert answer.text == "\n  two\n words \n\n", "a record keeps what was written"


def test_an_agent_with_a_name_of_its_own_is_known_by_it():
    pair = chain([Agent(name="Ada", role="planner"), Agent(name="judger", role="judger")])
    made = recipe(prompts=load_prompts("hierarchical"), graph=pair)
    programs, _ = solved(text_mas.build(made), SAMPLES[0], ScriptedBackend(reply="x"))
    assert "## From the Ada\nx" in programs[1].steps[0].text


def test_a_thinking_block_is_opened_where_an_agent_writes_and_nowhere_else():
    made = recipe(think=True)
    backend = ScriptedBackend(reply="x")
    for method in (baseline.build(made), text_mas.build(made)):
        programs, _ = solved(method, SAMPLES[0], backend)
        assert all(program.steps[0].text.endswith("assistant: <think>") for program in programs)
    texts = [read.text for read in latent_program(made, SAMPLES[0]).reads]
    assert [text.endswith("<think>") for text in texts] == [False, False, False, True]


def test_a_missing_prompt_is_refused_when_the_method_is_built():
    some = parse_prompts("agents: {judger: {latent: '{question} {answer_format}'}}", "some.yaml")
    alone = chain([Agent(name="judger", role="judger")])
    with pytest.raises(ConfigError, match=r"no role of some.yaml, line 1, agents is called 'single'"):
        baseline.build(recipe(prompts=some))
    with pytest.raises(
        ConfigError, match=r"agent 'judger' has no text prompt of its own, and some.yaml, line 1, agents.j"
    ):
        text_mas.build(recipe(prompts=some, graph=alone))
    with pytest.raises(ConfigError, match=r"some.yaml: there are no words for answer kind 'number'"):
        latent_mas.build(recipe(prompts=some, graph=alone))


def test_a_team_that_is_no_chain_is_run_by_text_mas():
    graph = team("ac", "bc", agents="abc")
    programs, _ = solved(text_mas.build(recipe(graph=graph)), SAMPLES[0], ScriptedBackend(reply="hm"))
    assert "hm" not in programs[1].steps[0].text
    assert programs[2].steps[0].text.count("hm") == 2


def test_an_agents_own_prompt_and_steps_come_before_those_of_the_run():
    own = [
        Agent(name="a", role="planner", latent_prompt="Ponder {question}", latent_steps=9),
        Agent(name="b", role="judger"),
    ]
    program = latent_mas.build(recipe(graph=chain(own))).program(SAMPLES[2])
    assert "Ponder what is 2 + 2?" in program.steps[0].text
    assert program.steps[1].steps == 9


def test_agents_see_their_own_view_of_the_question():
    split = Sample(id="x", question="how many?", target="3", views={"planner": "there are 3"})
    program = latent_mas.build(recipe()).program(split)
    reads = [step.text for step in program if isinstance(step, Read)]
    assert "there are 3" in reads[0]
    assert all("there are 3" not in text and "how many?" in text for text in reads[1:])


def test_counts_are_exact_for_latent_mas_and_a_bound_for_text_mas():
    backend = ScriptedBackend()
    for build in (latent_mas.build, text_mas.build):
        method = build(recipe())
        programs, _ = solved(method, SAMPLES[0], backend)
        real = [program.count() for program in programs]
        counted = method.count(SAMPLES[0])
        assert counted.prompt_tokens >= sum(count.prompt_tokens for count in real)
        assert counted.max_slots >= max(count.max_slots for count in real)
        if method.name == "latent_mas":
            assert [counted] == real


def test_the_bound_of_text_mas_counts_every_place_a_prompt_has_for_the_context():
    eager = [
        Agent(name="a", role="planner"),
        Agent(name="b", role="judger", text_prompt="{context} Again: {context} {context} {question}"),
    ]
    method = text_mas.build(recipe(graph=chain(eager)))
    programs, _ = solved(method, SAMPLES[0], ScriptedBackend(reply="w" * 40))
    real = [program.count() for program in programs]
    assert method.count(SAMPLES[0]).prompt_tokens == sum(count.prompt_tokens for count in real)
    assert method.count(SAMPLES[0]).max_slots == max(count.max_slots for count in real)


@pytest.mark.parametrize(
    ("build", "own", "use"),
    [
        (text_mas.build, {"latent_prompt": "{question}"}, "text"),
        (latent_mas.build, {"text_prompt": "{question}"}, "latent"),
    ],
)
def test_an_agent_without_a_prompt_for_the_method_is_named_with_its_role(build, own, use):
    lone = chain([Agent(name="x", role="expert", **own)])
    with pytest.raises(ConfigError, match=f"agent 'x' has no {use} prompt of its own, and no role .* 'expert'"):
        build(recipe(graph=lone))


# --- control arms ---


def test_no_transfer_is_the_last_agent_alone():
    program = latent_mas.build(recipe(), arm=Control.NO_TRANSFER).program(SAMPLES[0])
    assert verbs(program) == "Read Write"
    assert program.agents == ("judger",)


def test_noise_changes_the_source_of_thoughts_and_nothing_else():
    plain = latent_mas.build(recipe()).program(SAMPLES[0])
    noisy = control(Control.NOISE, plain)
    assert {step.source for step in noisy if isinstance(step, Think)} == {ThoughtSource.NOISE}
    back = [dataclasses.replace(s, source=ThoughtSource.OWN) if isinstance(s, Think) else s for s in noisy]
    assert Program(tuple(back)) == plain


def test_other_question_is_the_donors_memory_under_ones_own_last_prompt():
    method = latent_mas.build(recipe(), arm=Control.OTHER_QUESTION, samples=SAMPLES, seed=3)
    sample = SAMPLES[4]
    donor = next(other for other in SAMPLES if other.id == method.donor_of(sample))
    program = method.program(sample)
    assert donor.id != sample.id
    assert all(donor.question in step.text for step in program.steps[:-2] if isinstance(step, Read))
    assert sample.question in program.steps[-2].text
    assert donor.question not in program.steps[-2].text
    assert isinstance(program.steps[-1], Write)


def test_donors_are_a_derangement_fixed_by_the_seed():
    for n in range(2, 30):
        some = [Sample(id=str(k), question="q", target="1") for k in range(n)]
        given = donors(some, seed=n)
        assert sorted(donor.id for donor in given.values()) == sorted(sample.id for sample in some)
        assert all(donor.id != taker for taker, donor in given.items())
        assert given == donors(some, seed=n)
    assert donors(SAMPLES, seed=1) != donors(SAMPLES, seed=2)


def test_a_donor_needs_another_sample():
    with pytest.raises(ConfigError, match="at least 2"):
        donors(SAMPLES[:1], seed=0)


def test_a_control_arm_of_a_program_without_memory_is_refused():
    program = Program((Read(agent="a", tokens=(1,)), Write(agent="a", max_new_tokens=1)))
    for arm in (Control.NO_TRANSFER, Control.OTHER_QUESTION, Control.NOISE):
        with pytest.raises(ConfigError, match="hands over nothing"):
            control(arm, program)


def test_noise_for_thoughts_that_nobody_thinks_is_refused():
    with pytest.raises(ConfigError, match="nobody thinks"):
        latent_mas.build(recipe(latent_steps=0), arm=Control.NOISE)
    thinker = [Agent(name="a", role="planner", latent_steps=2), Agent(name="b", role="judger")]
    assert latent_mas.build(recipe(graph=chain(thinker), latent_steps=0), arm=Control.NOISE)


def test_a_control_arm_of_a_lone_agent_is_refused():
    with pytest.raises(ConfigError, match="one agent"):
        latent_mas.build(recipe(graph=chain([Agent(name="a", role="judger")])), arm=Control.NO_TRANSFER)
