"""A second derivation of the whole method: plain float64 arithmetic, written from the formulas of the papers.

No cache, no padding, no batch, no transformers: at every step the full sequence runs again from its input embeddings.
Who sees whom is one boolean row per position, fixed when the position is appended, so a hand-over only has to mark what
it dropped. It reads weights and configuration and nothing else of a model.

Shape letters: S positions so far, E hidden size, H query heads, G key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

RIDGE_LAMBDA = 1e-5


@dataclass(frozen=True)
class Result:
    """What a chain did.

    Attributes:
        written: Token ids of the last agent, without end of text.
        thoughts: ``[thoughts, E]`` input embeddings, of all agents in order.
        stopped: The last agent ended with an end-of-text token.
        margin: Smallest distance of the two largest logits over all tokens chosen.
    """

    written: tuple[int, ...]
    thoughts: Tensor
    stopped: bool
    margin: float


@dataclass
class _Sequence:
    """One row, from the first prompt to the last token; `sees` is ``[longest, longest]``, a row per position."""

    sees: Tensor
    embeddings: list[Tensor] = field(default_factory=list)
    agents: list[int] = field(default_factory=list)
    is_thought: list[bool] = field(default_factory=list)
    alive: list[bool] = field(default_factory=list)


class Oracle:
    """A model read as tensors: Qwen3, Qwen2, Llama, Mistral (sliding window) or Gemma."""

    def __init__(self, causal: Any) -> None:
        config = causal.config
        self.weights = {name: tensor.detach().double() for name, tensor in causal.state_dict().items()}
        self.kind: str = config.model_type
        assert self.kind in {"qwen3", "qwen2", "llama", "mistral", "gemma"}, self.kind
        self.layers: int = config.num_hidden_layers
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.epsilon: float = config.rms_norm_eps
        assert config.rope_parameters["rope_type"] == "default"
        self.theta: float = config.rope_parameters["rope_theta"]
        self.window: int | None = config.sliding_window if self.kind == "mistral" else None
        table = self.weights["model.embed_tokens.weight"]
        scale = math.sqrt(config.hidden_size) if self.kind == "gemma" else 1.0
        self.embedding = table * scale  # [V, E]
        self.tied: bool = config.tie_word_embeddings
        self.head = table if self.tied else self.weights["lm_head.weight"]  # [V, E]
        self.mean_norm = self.embedding.pow(2).sum(1).sqrt().mean()

    def ridge(self) -> Tensor:
        """Return ``W_a = (W_out^T W_out + lambda I)^-1 W_out^T W_in``, ``[E, E]``."""
        gram = self.head.T @ self.head + RIDGE_LAMBDA * torch.eye(self.head.shape[1], dtype=torch.float64)
        return torch.linalg.inv(gram) @ self.head.T @ self.embedding

    def chain(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        thoughts: int,
        realign: bool,
        max_new_tokens: int,
        end: Collection[int],
        handover: str = "full",
        every: bool = False,
    ) -> Result:
        """Run agents one after the other; all but the last think, the last one writes.

        Args:
            handover: ``full``, ``thoughts`` or ``last_agent``.
            every: `handover` applies between all agents, not only before the last one.
        """
        # With tied embeddings the solution is taken as the identity, by decision.
        matrix = self.ridge() if realign and not self.tied else None
        longest = sum(map(len, prompts)) + thoughts * (len(prompts) - 1) + max_new_tokens
        row, made = _Sequence(torch.zeros(longest, longest, dtype=torch.bool)), []
        for number, prompt in enumerate(prompts):
            for token in prompt:
                self._append(row, self.embedding[token], number, is_thought=False)
            if number == len(prompts) - 1:
                break
            for _ in range(thoughts):
                hidden = self._last_hidden(row)
                moved = hidden if matrix is None else hidden @ matrix
                made.append(moved * self.mean_norm / max(float(moved.pow(2).sum().sqrt()), 1e-6))
                self._append(row, made[-1], number, is_thought=True)
            if every or number == len(prompts) - 2:
                _drop(row, handover, number)
        written: list[int] = []
        margin, stopped = math.inf, False
        while len(written) < max_new_tokens and not stopped:
            logits = self.head @ self._last_hidden(row)
            best = logits.topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            token = int(best.indices[0])
            if token in end:
                stopped = True
            else:
                written.append(token)
                self._append(row, self.embedding[token], len(prompts) - 1, is_thought=False)
        width = self.embedding.shape[1]
        return Result(tuple(written), torch.stack(made) if made else torch.zeros(0, width), stopped, margin)

    def _append(self, row: _Sequence, embedding: Tensor, agent: int, *, is_thought: bool) -> None:
        position = len(row.embeddings)
        row.embeddings.append(embedding)
        row.agents.append(agent)
        row.is_thought.append(is_thought)
        row.alive.append(True)
        row.sees[position, : position + 1] = torch.tensor(row.alive)
        if self.window is not None:
            row.sees[position, : max(position + 1 - self.window, 0)] = False

    def _last_hidden(self, row: _Sequence) -> Tensor:
        """Return the hidden state after the final norm at the last position, ``[E]``."""
        x = torch.stack(row.embeddings)  # [S, E]
        slots = x.shape[0]
        sees = row.sees[:slots, :slots]
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            x = x + self._attention(f"{name}.self_attn", self._norm(x, f"{name}.input_layernorm"), sees)
            x = x + self._feed_forward(f"{name}.mlp", self._norm(x, f"{name}.post_attention_layernorm"))
        return self._norm(x, "model.norm")[-1]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        if self.kind == "gemma":
            weight = weight + 1
        return x / (x.pow(2).mean(-1, keepdim=True) + self.epsilon).sqrt() * weight

    def _linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return out if bias is None else out + bias

    def _attention(self, name: str, x: Tensor, sees: Tensor) -> Tensor:
        slots = x.shape[0]
        query = self._linear(x, f"{name}.q_proj").view(slots, self.heads, self.width)
        key = self._linear(x, f"{name}.k_proj").view(slots, self.groups, self.width)
        value = self._linear(x, f"{name}.v_proj").view(slots, self.groups, self.width)
        if self.kind == "qwen3":
            query, key = self._norm(query, f"{name}.q_norm"), self._norm(key, f"{name}.k_norm")
        query, key = self._turn(query), self._turn(key)
        heads = []
        for head in range(self.heads):
            group = head * self.groups // self.heads
            scores = query[:, head] @ key[:, group].T / math.sqrt(self.width)  # [S, S]
            weights = scores.masked_fill(~sees, -math.inf).softmax(-1)
            heads.append(weights @ value[:, group])
        return self._linear(torch.cat(heads, -1), f"{name}.o_proj")

    def _turn(self, x: Tensor) -> Tensor:
        """Rotate ``[S, heads, D]`` by position: pair i turns with angle position * theta^(-2i/D)."""
        half = self.width // 2
        rate = self.theta ** (-torch.arange(half, dtype=torch.float64) * 2 / self.width)
        angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None] * rate  # [S, 1, D/2]
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    def _feed_forward(self, name: str, x: Tensor) -> Tensor:
        gate, up = self._linear(x, f"{name}.gate_proj"), self._linear(x, f"{name}.up_proj")
        if self.kind == "gemma":
            inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
            active = 0.5 * gate * (1 + inner.tanh())
        else:
            active = gate / (1 + (-gate).exp())
        return self._linear(active * up, f"{name}.down_proj")


def _drop(row: _Sequence, handover: str, sender: int) -> None:
    for position in range(len(row.alive)):
        if handover == "thoughts":
            row.alive[position] &= row.is_thought[position]
        elif handover == "last_agent":
            row.alive[position] &= row.agents[position] == sender
        else:
            assert handover == "full", handover
