"""What the embedded model is trained on: every role of the prompt set `tiny`, alone and in chains.

A lesson is one or several prompts and the reply that follows the last of them. Between the prompts of a chain
the trainer may put thoughts. This module knows texts and token ids, no tensors.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from latentmas.tiny import generator
from latentmas.tiny.generator import Problem

AGENTS = ("planner", "critic", "refiner", "judger")
FLAWED_SHARE = 0.15

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Token ids of the prompts, each a chat up to the generation prompt, and of the reply with its end."""

    prompts: tuple[tuple[int, ...], ...]
    reply: tuple[int, ...]

    @property
    def length(self) -> int:
        """How many tokens it has, thoughts not counted."""
        return sum(map(len, self.prompts)) + len(self.reply)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The part of a prompt set that the curriculum fills in."""

    texts: Mapping[str, Mapping[str, str]]
    context_entry: str
    answer_format: str

    def fill(self, agent: str, mode: str, question: str, earlier: Mapping[str, str] | None = None) -> str:
        """Return the content of an agent's user turn. `earlier` maps agents to their texts, in order."""
        entries = [self.context_entry.format(agent=name, text=text) for name, text in (earlier or {}).items()]
        values = {"question": question, "context": "".join(entries), "answer_format": self.answer_format}
        return re.sub(r"\{(question|context|answer_format)\}", lambda m: values[m[1]], self.texts[agent][mode])


def tiny_prompts() -> PromptSet:
    """Return the prompt set the embedded model is trained with."""
    text = resources.files("latentmas").joinpath("prompts", "tiny.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return PromptSet(
        texts=content["agents"],
        context_entry=content["context_entry"],
        answer_format=content["answer_format"]["number"],
    )


def agent_question(problem: Problem, agent: str, divided: bool) -> str:
    """Return what an agent reads: the story, or in the split task its own view."""
    if not divided:
        return generator.story(problem)
    if agent in {"single", "judger"}:
        return generator.final_question(problem)
    return {**generator.views(problem)}[agent]  # type: ignore[return-value]


def agent_text(problem: Problem, agent: str, divided: bool, plan_was_right: bool = True) -> str:
    """Return what an agent should write in text_mas."""
    facts = len(problem.operations) + 1
    deal = problem.deal if divided else None
    if agent == "planner":
        return generator.plan(problem, deal[0] if deal else facts)
    if agent == "critic":
        verdict = "ok" if plan_was_right else "fix"
        return f"{verdict}, {generator.plan(problem, deal[0] + deal[1] if deal else facts)}"
    if agent == "refiner":
        return generator.worked_lines(problem)
    return generator.reply(problem)


class Curriculum:
    """Draws lessons. Each is a function of the random state it is given."""

    def __init__(self, encode: Encode, prompts: PromptSet) -> None:
        """Take an `encode` that turns a text with role markers into token ids."""
        self._encode = encode
        self._prompts = prompts

    def lines(self, rng: random.Random) -> Lesson:
        """Return the worked lines of a problem without a question: arithmetic alone."""
        problem = generator.draw(rng, "train")
        plan = generator.plan(problem, len(problem.operations) + 1)
        return self._lesson([plan], generator.reply(problem))

    def role(self, rng: random.Random, agent: str) -> Lesson:
        """Return one agent's turn in text_mas, or the single agent's."""
        divided = agent != "single" and rng.random() < 0.4
        problem = generator.draw(rng, "train", 2 if divided else 1)
        if agent == "single":
            question = self._prompts.fill("single", "single", generator.story(problem))
            return self._lesson([question], generator.reply(problem))
        flawed = not divided and rng.random() < FLAWED_SHARE
        teller = _flaw(rng, problem) if flawed else problem
        earlier: dict[str, str] = {}
        for name in AGENTS[: AGENTS.index(agent)]:
            if name == "critic" and agent != "critic" and rng.random() < 0.7:
                teller = problem
            earlier[name] = agent_text(teller, name, divided, plan_was_right=not flawed)
        prompt = self._prompts.fill(agent, "text", agent_question(problem, agent, divided), earlier)
        return self._lesson([prompt], agent_text(problem, agent, divided, plan_was_right=not flawed))

    def chain(self, rng: random.Random, divided: bool) -> Lesson:
        """Return the four prompts of latent_mas and the judger's reply."""
        problem = generator.draw(rng, "train", 2 if divided else 1)
        return self._lesson(chain_contents(problem, divided, self._prompts), generator.reply(problem))

    def _lesson(self, contents: list[str], reply: str) -> Lesson:
        prompts = tuple(tuple(self._encode(as_chat(content))) for content in contents)
        return Lesson(prompts=prompts, reply=tuple(self._encode(f"{reply}<|end|>")))


def chain_contents(problem: Problem, divided: bool, prompts: PromptSet) -> list[str]:
    """Return the user turns of planner, critic, refiner and judger in latent_mas."""
    return [prompts.fill(agent, "latent", agent_question(problem, agent, divided)) for agent in AGENTS]


def as_chat(content: str) -> str:
    """Return one user turn and the generation prompt, as the chat template lays them out."""
    return f"<|user|>{content}<|end|><|assistant|>"


def sample_texts(count: int, seed: int, prompts: PromptSet) -> list[str]:
    """Return texts of all kinds, for training the tokenizer."""
    rng = random.Random(f"texts:{seed}")
    texts: list[str] = []
    for _ in range(count):
        problem = generator.draw(rng, "train", 2)
        for divided in (False, True):
            earlier: dict[str, str] = {}
            for agent in AGENTS:
                text = agent_text(problem, agent, divided)
                texts += [prompts.fill(agent, "text", agent_question(problem, agent, divided), earlier), text]
                earlier[agent] = text
        texts.append(prompts.fill("single", "single", generator.story(problem)))
    return texts


def _flaw(rng: random.Random, problem: Problem) -> Problem:
    """Return another problem with as many operations, whose plan is wrong for this one."""
    while True:
        other = generator.draw(rng, "train")
        if len(other.operations) == len(problem.operations) and other.result != problem.result:
            return other
