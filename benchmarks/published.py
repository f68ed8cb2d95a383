"""Latent collaboration the way it was published, as the other side of a benchmark.

Written from the description of the method, not copied. It does what the published code does and no more: every
forward pass goes through the whole causal model and asks for the hidden states of all layers, the LM head is computed
at every position of a prompt and at every thought, the cache grows by concatenation, the mask over the past is all
ones, and the last agent's text comes from `generate`.

Three choices are kinder to this side than the original: a prompt that is shorter than its neighbours is padded on the
left (the original pads on the right and reads hidden states at pads), the identity matrix of the realignment is not
multiplied with, and the last agent's prompt is read inside `generate`, which computes the LM head at its end only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

PAD = 0


@dataclass(slots=True)
class PublishedRun:
    """What a run wrote and how long each phase took.

    Attributes:
        seconds: Of ``prefill``, ``think`` and ``decode``; the prefill inside `generate` counts as prefill.
    """

    tokens: list[list[int]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "think": 0.0, "decode": 0.0})


@torch.no_grad()
def run_published(
    model: Any,
    agents: Sequence[Sequence[Sequence[int]]],
    *,
    thoughts: int,
    new_tokens: int,
    synchronize: Callable[[], None],
) -> PublishedRun:
    """Run a chain of agents; the last one writes exactly `new_tokens` greedy tokens.

    Args:
        agents: Prompt tokens of each row, for each agent.
        synchronize: Waits for the device, so that a phase is charged for its own work.
    """
    run = PublishedRun()
    norm = mean_norm(model)
    cache = DynamicCache(config=model.config)
    last = len(agents) - 1
    for number, prompts in enumerate(agents):
        ids, own_mask = _padded(prompts, model.device)
        past = torch.ones(len(prompts), cache.get_seq_length(), dtype=torch.long, device=model.device)
        mask = torch.cat([past, own_mask], dim=1)
        if number == last:
            _generate(model, ids, mask, cache, run, new_tokens=new_tokens, synchronize=synchronize)
            break
        began = time.perf_counter()
        output = model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, output_hidden_states=True
        )
        hidden = output.hidden_states[-1][:, -1]
        synchronize()
        run.seconds["prefill"] += time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(thoughts):
            mask = torch.ones(len(prompts), cache.get_seq_length() + 1, dtype=torch.long, device=model.device)
            output = model(
                inputs_embeds=realigned(hidden, norm)[:, None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
            hidden = output.hidden_states[-1][:, -1]
        synchronize()
        run.seconds["think"] += time.perf_counter() - began
    return run


def mean_norm(model: Any) -> Tensor:
    """Return the mean norm of the input embeddings, computed once per model."""
    if not hasattr(model, "_published_norm"):
        model._published_norm = model.get_input_embeddings().weight.detach().float().norm(dim=1).mean()
    return model._published_norm  # type: ignore[no-any-return]


def realigned(hidden: Tensor, norm: Tensor) -> Tensor:
    """Return hidden states at the mean norm of the input embeddings."""
    vectors = hidden.float()
    return (vectors * (norm / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-6))).to(hidden.dtype)


class _FirstLogits(LogitsProcessor):  # type: ignore[misc]
    """Notes when `generate` has its first logits: the end of the prefill."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.synchronize = synchronize
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.at is None:
            self.synchronize()
            self.at = time.perf_counter()
        return scores


def _generate(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    cache: DynamicCache,
    run: PublishedRun,
    *,
    new_tokens: int,
    synchronize: Callable[[], None],
) -> None:
    began = time.perf_counter()
    first = _FirstLogits(synchronize)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=PAD, eos_token_id=None
        ),
        logits_processor=LogitsProcessorList([first]),
    )
    run.tokens = output[:, ids.shape[1] :].tolist()
    ended = time.perf_counter()
    assert first.at is not None
    run.seconds["prefill"] += first.at - began
    run.seconds["decode"] = ended - first.at


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
