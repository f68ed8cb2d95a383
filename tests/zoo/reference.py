"""What a model of transformers does by itself: one row, no padding, no package of ours.

The whole sequence runs again at every step, from input embeddings and explicit positions. Only memories that were made
apart from each other, or that moved, need a cache: it is put together from forward passes at the positions where the
keys belong, so nothing here knows how keys are turned.

Shape letters: S slots, E hidden size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from zoo.specimens import END, PAD

Turn = tuple[tuple[int, ...], int]
"""What an agent reads, and how many thoughts it has."""
SHAKE = 1e-6


@dataclass(slots=True)
class Told:
    """What a program came to.

    Attributes:
        thoughts: ``[m, E]`` of each turn with thoughts, in order.
        written: Token ids without the end of text.
        gap: Smallest distance of the two largest logits of all written tokens, as a share of the largest.
    """

    thoughts: list[Tensor] = field(default_factory=list)
    written: tuple[int, ...] = ()
    gap: float = 1.0


class NoReferenceError(Exception):
    """The model itself cannot do this; says why."""


class Reference:
    """A model folder, read by transformers alone, in float64 (float32 where a model has no float64)."""

    def __init__(self, folder: Path | str, auto: Any, attention: str = "eager") -> None:
        self.model = auto.from_pretrained(folder, dtype=torch.float64, attn_implementation=attention).eval()
        if type(self.model)._can_set_experts_implementation():
            self.model.set_experts_implementation("eager")  # the default has no float64
        self.by_length = "longrope" in str(getattr(self.model.config.get_text_config(), "rope_parameters", None))
        table = self.model.get_input_embeddings()
        self._table = table
        self._shake: torch.Generator | None = None
        rows = min(len(AutoTokenizer.from_pretrained(folder)), table.weight.shape[0])  # the others are padding
        self.norm = float(table(torch.arange(rows)).norm(dim=-1).mean())

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return input embeddings, ``[1, S, E]``."""
        plain: Tensor = self._table(torch.tensor([list(ids)], dtype=torch.long))
        if self._shake is None:
            return plain
        return plain * (1 + SHAKE * torch.randn(plain.shape, generator=self._shake, dtype=torch.float64))

    @contextmanager
    def shaken(self) -> Iterator[None]:
        """Give input embeddings a relative error as float32 has, to see what a model makes of it."""
        self._shake = torch.Generator().manual_seed(0)
        try:
            yield
        finally:
            self._shake = None

    @torch.inference_mode()
    def baseline(self, prompt: Sequence[int], new: int, *, cached: bool = True) -> tuple[int, ...]:
        """Return what `generate` writes greedily."""
        ids = torch.tensor([list(prompt)])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, eos_token_id=END,
            pad_token_id=PAD, use_cache=cached,
        )  # fmt: skip
        written = out[0, len(prompt) :].tolist()
        return tuple(written[: written.index(END)] if END in written else written)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], positions: Tensor | None = None) -> Tensor:
        """Return ``[V]`` logits after token ids, in one piece."""
        more = {} if positions is None else {"position_ids": positions[None]}
        mask = torch.ones(1, len(ids), dtype=torch.long)
        out = self.model(input_ids=torch.tensor([list(ids)]), attention_mask=mask, use_cache=False, **more)
        return out.logits[0, -1]

    @torch.inference_mode()
    def program(self, turns: Sequence[Turn], new: int) -> Told:
        """Return what a chain does that passes on everything, by running everything again at every step.

        longrope turns a sequence by its length. A chain is one sequence that is as long as all that is read and thought
        before its text, so while it grows a last token stands that far off, which nobody sees: it comes after them.
        """
        told, sequence = Told(), self.embed(())[:, :0]
        reach = sum(len(tokens) + thoughts for tokens, thoughts in turns) if self.by_length else 0
        for tokens, thoughts in turns:
            sequence = torch.cat([sequence, self.embed(tokens)], dim=1)
            made = []
            for _ in range(thoughts):
                made.append(self._thought(self.whole(sequence, reach)[0]))
                sequence = torch.cat([sequence, made[-1][None, None]], dim=1)
            if made:
                told.thoughts.append(torch.stack(made))
        written: list[int] = []
        while len(written) < new:
            logits = self.whole(sequence)[1]
            if (token := self._choose(logits, told)) == END:
                break
            written.append(token)
            sequence = torch.cat([sequence, self.embed([token])], dim=1)
        told.written = tuple(written)
        return told

    @torch.inference_mode()
    def joined(self, branches: Sequence[Turn], turn: Turn, new: int) -> Told:
        """Return what someone does who hears several agents that did not hear each other.

        Every branch is read at the positions it has in the end, on an empty cache.
        """
        told, parts, start = Told(), [], 0
        for tokens, thoughts in branches:
            cache, _, start = self._turn(_empty(), (tokens, thoughts), start, told)
            parts.append(cache)
        return self._goes_on(_end_to_end(parts), start, turn, new, told)

    @torch.inference_mode()
    def moved(self, first: Turn, turn: Turn, new: int) -> Told:
        """Return what someone does who is handed the thoughts of `first` only, moved to 0, 1, 2 ...

        The first agent starts so far below 0 that its thoughts come to lie there by themselves. Where nothing is below
        0 but only distances count, nobody moves, and the last agent goes on from where the thoughts are.

        Raises:
            NoReferenceError: Places themselves count.
        """
        told, length = Told(), len(first[0])
        if self._is_the_same_at(first[0], -length) and self._is_the_same_at(first[0], -(length // 2)):
            start = -length
        elif self._is_the_same_at(first[0], 50):
            start = 0
        else:
            raise NoReferenceError(
                "positions themselves count here, so moved thoughts have nothing to be compared with"
            )
        cache, _, start = self._turn(_empty(), first, start, told)
        kept = _empty()
        for number, layer in enumerate(cache.layers):
            kept.update(layer.keys[:, :, -first[1] :].clone(), layer.values[:, :, -first[1] :].clone(), number)
        return self._goes_on(kept, start, turn, new, told)

    def _is_the_same_at(self, ids: Sequence[int], offset: int) -> bool:
        """Return whether all tokens may stand that much further on."""
        plain = self.logits(ids)
        try:
            moved = self.logits(ids, torch.arange(len(ids)) + offset)
        except IndexError:
            return False
        except RuntimeError as error:
            if "out of bounds" in str(error):
                return False
            raise
        return float((moved - plain).abs().max()) <= 1e-3 * float(plain.abs().max())

    def sensitivity(self, ids: Sequence[int]) -> tuple[float, float]:
        """Return how far logits move when positions are stretched, and when the first token is another.

        Both as a share of the largest logit.
        """
        plain = self.logits(ids)
        spread = self.logits(ids, 2 * torch.arange(len(ids)))
        other = self.logits([(ids[0] + 57) % 300 + 4, *ids[1:]])
        size = plain.abs().max()
        return float((spread - plain).abs().max() / size), float((other - plain).abs().max() / size)

    def difference(self, ids: Sequence[int]) -> float:
        """Return how far logits from input embeddings are from those from token ids."""
        plain = self.logits(ids)
        ours = self.whole(self.embed(ids))[1]
        return float((ours - plain).abs().max() / plain.abs().max())

    def whole(self, sequence: Tensor, reach: int = 0) -> tuple[Tensor, Tensor]:
        """Return the last hidden state ``[E]`` and logits ``[V]`` of ``[1, S, E]`` input embeddings.

        Args:
            reach: Length of the sequence this is the beginning of.
        """
        length = sequence.shape[1]
        positions = torch.arange(length)
        if length < reach:
            sequence = torch.cat([sequence, self.embed([5])], dim=1)
            positions = torch.cat([positions, torch.tensor([reach - 1])])
        return self._run(sequence, positions, None, length - 1)

    def _run(self, sequence: Tensor, positions: Tensor, cache: Any, place: int = -1) -> tuple[Tensor, Tensor]:
        past = 0 if cache is None else cache.get_seq_length()
        out = self.model(
            inputs_embeds=sequence,
            attention_mask=torch.ones(1, past + sequence.shape[1], dtype=torch.long),
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=True,
        )
        return out.hidden_states[-1][0, place], out.logits[0, place]

    def _thought(self, hidden: Tensor) -> Tensor:
        return hidden * (self.norm / hidden.norm().clamp_min(1e-6))

    def _choose(self, logits: Tensor, told: Told) -> int:
        best = logits.topk(2)
        told.gap = min(told.gap, float((best.values[0] - best.values[1]) / logits.abs().max()))
        return int(best.indices[0])

    def _turn(self, cache: Any, turn: Turn, start: int, told: Told) -> tuple[Any, Tensor, int]:
        tokens, thoughts = turn
        made = []
        # Token by token where something is in memory: then no mask has to know more than who is there.
        pieces = [tokens] if cache.get_seq_length() == 0 else [(token,) for token in tokens]
        logits = torch.zeros(0)
        for piece in pieces:
            hidden, logits = self._run(self.embed(piece), torch.arange(start, start + len(piece)), cache)
            start += len(piece)
        for _ in range(thoughts):
            made.append(self._thought(hidden))
            hidden, logits = self._run(made[-1][None, None], torch.tensor([start]), cache)
            start += 1
        if made:
            told.thoughts.append(torch.stack(made))
        return cache, logits, start

    def _goes_on(self, cache: Any, start: int, turn: Turn, new: int, told: Told) -> Told:
        cache, logits, start = self._turn(cache, turn, start, told)
        written: list[int] = []
        while len(written) < new and (token := self._choose(logits, told)) != END:
            written.append(token)
            _, logits = self._run(self.embed([token]), torch.tensor([start]), cache)
            start += 1
        told.written = tuple(written)
        return told


def _empty() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _end_to_end(parts: Sequence[Any]) -> Any:
    cache = _empty()
    for number in range(len(parts[0].layers)):
        layers = [part.layers[number] for part in parts]
        if not all(torch.is_tensor(layer.keys) for layer in layers):
            raise NoReferenceError(f"layer {number} keeps no keys and values")
        keys = torch.cat([layer.keys for layer in layers], dim=2)
        cache.update(keys, torch.cat([layer.values for layer in layers], dim=2), number)
    return cache


def cache_of(output: Any) -> Any:
    """Return what a forward pass left for the next one.

    Raises:
        NoReferenceError: Nothing.
    """
    for name in ("past_key_values", "cache_params", "state"):
        if (cache := getattr(output, name, None)) is not None:
            return cache
    raise NoReferenceError("a forward pass leaves no cache")


def quiet() -> None:
    """Silence what transformers says about tiny models."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
