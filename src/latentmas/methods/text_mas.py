"""text_mas: the agents of a team exchange text. One program per agent; a prompt contains the texts before it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

from latentmas.methods.compile import Recipe, check_text, text_program
from latentmas.program import Count, Program
from latentmas.prompts import Use
from latentmas.protocols import Capability, Completion
from latentmas.samples import Answer, FinishReason, Sample


@final
@dataclass(frozen=True, slots=True)
class TextMAS:
    """Every agent writes; it reads what everyone before it wrote, without the blanks around a text.

    Attributes:
        context_characters: At most so many characters of the others' texts are read; -1 is all.
        context_tokens: The same in tokens; -1 is all. Both cut the oldest text.
    """

    recipe: Recipe
    context_characters: int = -1
    context_tokens: int = -1
    name: str = "text_mas"
    needs: frozenset[Capability] = frozenset()

    @property
    def roles(self) -> Mapping[str, str]:
        return {agent.name: agent.role for agent in self.recipe.graph.agents}

    def solve(self, sample: Sample) -> Generator[Program, Completion, Answer]:
        entries: dict[str, str] = {}
        completion: Completion | None = None
        for agent in self.recipe.graph.agents:
            heard = self.recipe.graph.heard_by(agent.name)
            context = self._cut("".join(entries[speaker.name] for speaker in heard))
            completion = yield text_program(self.recipe, agent, sample, context)
            # As published: marks that are special tokens would be the frame of a chat in the middle of a message.
            said = self.recipe.codec.decode(completion.steps[-1].written, marks=False)
            entries[agent.name] = self.recipe.entry(agent, said.strip())
        assert completion is not None
        return Answer(text=completion.text, finish_reason=completion.finish_reason or FinishReason.LENGTH)

    def count(self, sample: Sample) -> Count:
        """Return a bound: how long the texts will be that later prompts contain, nobody knows before.

        It holds as long as decoding written tokens and encoding the text again gives no more tokens.
        """
        recipe, graph = self.recipe, self.recipe.graph
        prompt = written = slots = 0
        for agent in graph.agents:
            alone = text_program(recipe, agent, sample, "").count()
            entries = sum(
                recipe.max_new_tokens + len(recipe.codec.encode_text(recipe.entry(speaker, "")))
                for speaker in graph.heard_by(agent.name)
            )
            context = entries if self.context_tokens < 0 else min(entries, self.context_tokens)
            context *= recipe.template(agent, Use.TEXT).count("{context}")
            prompt += alone.prompt_tokens + context
            written += alone.max_written_tokens
            slots = max(slots, alone.max_slots + context)
        return Count(prompt_tokens=prompt, thoughts=0, max_written_tokens=written, max_slots=slots, positions=slots)

    def donor_of(self, sample: Sample) -> str | None:
        return None

    def _cut(self, context: str) -> str:
        """Keep the newest part. The published code cut the newest instead, and its last character always."""
        if self.context_characters >= 0:
            context = context[max(len(context) - self.context_characters, 0) :]
        if self.context_tokens >= 0:
            tokens = self.recipe.codec.encode_text(context)
            if len(tokens) > self.context_tokens:
                newest = tokens[len(tokens) - self.context_tokens :]
                context = self.recipe.codec.decode(newest, marks=False)
        return context


def build(recipe: Recipe, *, context_characters: int = -1, context_tokens: int = -1) -> TextMAS:
    """Return the method.

    Raises:
        ConfigError: A prompt of the team has no place for what the others wrote.
    """
    check_text(recipe)
    return TextMAS(recipe, context_characters, context_tokens)
