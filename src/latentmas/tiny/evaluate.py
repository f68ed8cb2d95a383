"""Held-out accuracy of the embedded model, cell by cell: methods, controls and what the judger may see.

A plain batch implementation on `Network`, independent of the package's backends: the two check each other.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentmas.tiny import curriculum, generator
from latentmas.tiny.curriculum import AGENTS, Encode, PromptSet
from latentmas.tiny.generator import Problem
from latentmas.tiny.network import Memory, Network, pad_left, remember

TEST_SEED = 1
BATCH = 50
LONGEST_REPLY = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One line of the table."""

    name: str
    method: str = "latent"
    """``single``, ``text``, ``latent`` or ``none`` (the judger's latent prompt without a memory)."""
    divided: bool = False
    steps: int = 5
    realign: bool = False
    only_thoughts: bool = False
    donor: bool = False
    """The memory is another question's."""
    noise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A cell's outcome. `written` is tokens written per problem by all agents, end tokens included."""

    cell: Cell
    correct: int
    count: int
    written: float
    seconds: float

    def __str__(self) -> str:
        low, high = wilson(self.correct, self.count)
        share = 100 * self.correct / self.count
        return (
            f"{self.cell.name:32} {share:5.1f} %  [{100 * low:5.1f}, {100 * high:5.1f}]  n={self.count}"
            f"  written {self.written:5.1f}  {self.seconds:5.1f} s"
        )


def cells() -> Iterator[Cell]:
    """Return the whole table."""
    for divided in (False, True):
        task = "split" if divided else "main"
        yield Cell(name=f"{task} baseline", method="single", divided=divided)
        yield Cell(name=f"{task} text_mas", method="text", divided=divided)
        for steps in (5, 0, 1, 10, 20):
            yield Cell(name=f"{task} latent m={steps}", divided=divided, steps=steps)
        yield Cell(name=f"{task} latent m=5 realign", divided=divided, realign=True)
        yield Cell(name=f"{task} no transfer", method="none", divided=divided)
        yield Cell(name=f"{task} other question", divided=divided, donor=True)
        yield Cell(name=f"{task} noise", divided=divided, noise=True)
        yield Cell(name=f"{task} thoughts m=5", divided=divided, only_thoughts=True)
        yield Cell(name=f"{task} thoughts m=5 realign", divided=divided, only_thoughts=True, realign=True)
        yield Cell(name=f"{task} thoughts m=10", divided=divided, only_thoughts=True, steps=10)
        yield Cell(name=f"{task} thoughts noise", divided=divided, only_thoughts=True, noise=True)
        yield Cell(name=f"{task} thoughts other question", divided=divided, only_thoughts=True, donor=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Runs cells on held-out problems, greedily."""

    network: Network
    encode: Encode
    decode: Callable[[list[int]], str]
    prompts: PromptSet
    pad: int
    end: int

    @torch.no_grad()
    def measure(self, cell: Cell, count: int) -> Measurement:
        """Return the outcome on the first `count` test problems."""
        started = time.process_time()
        problems = generator.problems("test", count, TEST_SEED, 2 if cell.divided else 1)
        noise = torch.Generator().manual_seed(0) if cell.noise else None
        correct = written = 0
        for first in range(0, count, BATCH):
            replies, tokens = self._solve(cell, problems[first : first + BATCH], noise)
            written += tokens
            for problem, reply in zip(problems[first : first + BATCH], replies, strict=True):
                boxed = re.findall(r"\\boxed\{(\d+)\}", reply)
                correct += bool(boxed) and int(boxed[-1]) == problem.result
        seconds = time.process_time() - started
        return Measurement(cell=cell, correct=correct, count=count, written=written / count, seconds=seconds)

    def _solve(self, cell: Cell, problems: list[Problem], noise: torch.Generator | None) -> tuple[list[str], int]:
        """Return the final replies and how many tokens were written."""
        if cell.method == "single":
            questions = [curriculum.agent_question(p, "single", cell.divided) for p in problems]
            return self._write([self.prompts.fill("single", "single", text) for text in questions])
        if cell.method == "text":
            return self._talk(problems, cell.divided)
        chains = [curriculum.chain_contents(problem, cell.divided, self.prompts) for problem in problems]
        memory = None
        if cell.method == "latent":
            givers = chains[1:] + chains[:1] if cell.donor else chains
            size = (3, len(chains), cell.steps, self.network.size.hidden_size)
            memory, _ = remember(
                self.network,
                [[self._chat(chain[agent]) for chain in givers] for agent in range(3)],
                cell.steps,
                self.pad,
                aligner=self.network.ridge() if cell.realign else None,
                given=list(self.network.rescale(torch.randn(size, generator=noise))) if noise else None,
                only_thoughts=cell.only_thoughts,
            )
        return self._write([chain[3] for chain in chains], memory)

    def _talk(self, problems: list[Problem], divided: bool) -> tuple[list[str], int]:
        earlier: list[dict[str, str]] = [{} for _ in problems]
        total = 0
        replies: list[str] = []
        for agent in AGENTS:
            contents = [
                self.prompts.fill(agent, "text", curriculum.agent_question(problem, agent, divided), texts)
                for problem, texts in zip(problems, earlier, strict=True)
            ]
            replies, written = self._write(contents)
            total += written
            for texts, reply in zip(earlier, replies, strict=True):
                texts[agent] = reply
        return replies, total

    def _write(self, contents: list[str], memory: Memory | None = None) -> tuple[list[str], int]:
        ids, real = pad_left([self._chat(content) for content in contents], self.pad)
        _, memory = self.network.extend(ids, real, memory)
        columns: list[Tensor] = []
        ended = torch.zeros(len(contents), dtype=torch.bool)
        for _ in range(LONGEST_REPLY):
            chosen = self.network.lm_head(memory.last).argmax(-1)
            columns.append(chosen)
            ended |= chosen == self.end
            if bool(ended.all()):
                break
            _, memory = self.network.extend(chosen.unsqueeze(1), memory=memory)
        replies: list[str] = []
        written = 0
        for row in torch.stack(columns, 1).tolist():
            length = row.index(self.end) if self.end in row else len(row)
            written += min(length + 1, len(row))
            replies.append(self.decode(row[:length]))
        return replies, written

    def _chat(self, content: str) -> list[int]:
        return self.encode(curriculum.as_chat(content))


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    z = 1.959964
    share = correct / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)
