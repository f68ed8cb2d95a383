"""A Qwen3 decoder in plain torch, small enough to train on one core, and the memory it thinks in.

Parameter names are those of transformers' `Qwen3ForCausalLM`, so the weights load there unchanged. Training
and evaluation run here because the general module spends most of its time outside of arithmetic at this size.

Shape letters: B rows, T new slots, S all slots, D hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN = -1e9
"""Added to the score of a slot that may not be seen. Finite, so that a row of padding has no NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The widths of the network, under the names of transformers' configuration."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


class Norm(nn.Module):
    """Root mean square norm over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with unit mean square, times the weight."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with normalized queries and keys."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        width, kv_width = size.num_attention_heads * size.head_dim, size.num_key_value_heads * size.head_dim
        self.q_proj = nn.Linear(size.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(size.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(size.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, size.hidden_size, bias=False)
        self.q_norm = Norm(size.head_dim, size.rms_norm_eps)
        self.k_norm = Norm(size.head_dim, size.rms_norm_eps)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return ``[B, T, D]`` and the keys and values of all slots. `mask` is ``[B, 1, T, S]``."""
        rows, new, _ = x.shape
        heads, groups = self.size.num_attention_heads, self.size.num_key_value_heads
        query = _rotate(self.q_norm(self.q_proj(x).view(rows, new, heads, -1)), turn).transpose(1, 2)
        key = _rotate(self.k_norm(self.k_proj(x).view(rows, new, groups, -1)), turn).transpose(1, 2)
        value = self.v_proj(x).view(rows, new, groups, -1).transpose(1, 2)
        if past is not None:
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        query = query.reshape(rows, groups, heads // groups, new, -1)
        scores = query @ key.unsqueeze(2).transpose(-1, -2) * self.size.head_dim**-0.5 + mask.unsqueeze(2)
        mixed = scores.softmax(-1) @ value.unsqueeze(2)  # [B, groups, heads / groups, T, head_dim]
        mixed = mixed.reshape(rows, heads, new, -1).transpose(1, 2).reshape(rows, new, -1)
        out: Tensor = self.o_proj(mixed)
        return out, (key, value)


class FeedForward(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.up_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.down_proj = nn.Linear(size.intermediate_size, size.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, shaped as `x`."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = FeedForward(size)
        self.input_layernorm = Norm(size.hidden_size, size.rms_norm_eps)
        self.post_attention_layernorm = Norm(size.hidden_size, size.rms_norm_eps)


class Decoder(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.num_hidden_layers))
        self.norm = Norm(size.hidden_size, size.rms_norm_eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What has been read and thought so far."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    visible: Tensor
    """``[B, S]`` bool: slots that later ones may see. False for padding and for what was hidden."""
    next_position: Tensor
    """``[B]``: padding is not counted, hidden slots are."""
    last: Tensor
    """``[B, D]``: the last slot's hidden state after the final norm."""

    def hide(self, slots: Tensor) -> "Memory":
        """Return the memory with `slots` (``[S]`` bool) hidden from everything that follows."""
        return replace(self, visible=self.visible & ~slots)


class Network(nn.Module):
    """The causal language model."""

    frequencies: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.model = Decoder(size)
        self.lm_head = nn.Linear(size.hidden_size, size.vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.1)
        exponents = torch.arange(0, size.head_dim, 2) / size.head_dim
        self.register_buffer("frequencies", size.rope_theta**-exponents, persistent=False)

    def extend(self, inputs: Tensor, real: Tensor | None = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Lay new slots on a memory.

        Args:
            inputs: ``[B, T]`` token ids or ``[B, T, D]`` input vectors.
            real: ``[B, T]`` bool, False for padding; None where there is none.
            memory: What came before; None at the start.

        Returns:
            Hidden states after the final norm, ``[B, T, D]``, and the longer memory.
        """
        x = self.model.embed_tokens(inputs) if inputs.ndim == 2 else inputs
        rows, new, _ = x.shape
        if real is None:
            real = torch.ones(rows, new, dtype=torch.bool)
        first = memory.next_position if memory else torch.zeros(rows, dtype=torch.long)
        positions = (first.unsqueeze(1) + real.long().cumsum(1) - 1).clamp(min=0)  # [B, T]
        angles = (positions.unsqueeze(-1) * self.frequencies).unsqueeze(2)  # [B, T, 1, head_dim / 2]
        turn = (angles.cos(), angles.sin())
        visible = torch.cat((memory.visible, real), 1) if memory else real  # [B, S]
        allowed = visible.unsqueeze(1)
        if new > 1:
            causal = torch.ones(new, visible.shape[1], dtype=torch.bool).tril(visible.shape[1] - new)
            allowed = allowed & causal
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, HIDDEN).unsqueeze(1)  # [B, 1, T, S]
        keys_values: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            past = memory.keys_values[index] if memory else None
            attended, present = layer.self_attn(layer.input_layernorm(x), turn, mask, past)
            x = x + attended
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            keys_values.append(present)
        hidden: Tensor = self.model.norm(x)
        longer = Memory(
            keys_values=tuple(keys_values),
            visible=visible,
            next_position=first + real.long().sum(1),
            last=hidden[:, -1],
        )
        return hidden, longer

    def think(self, memory: Memory, steps: int, aligner: Tensor | None) -> tuple[Memory, Tensor]:
        """Append `steps` thoughts and return the longer memory and the vectors fed, ``[B, steps, D]``.

        Args:
            memory: Where to start; its last slot must be real in every row.
            steps: How many; 0 changes nothing.
            aligner: ``[D, D]`` from `ridge`; None rescales only.
        """
        thoughts = [memory.last.new_empty(len(memory.last), 0, self.size.hidden_size)]
        for _ in range(steps):
            thought = memory.last if aligner is None else memory.last @ aligner
            thoughts.append(self.rescale(thought).unsqueeze(1))
            _, memory = self.extend(thoughts[-1], memory=memory)
        return memory, torch.cat(thoughts, 1)

    def rescale(self, vectors: Tensor) -> Tensor:
        """Return the vectors with the mean norm of the input embeddings."""
        scaled: Tensor = vectors * (self.embedding_norm() / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6))
        return scaled

    def embedding_norm(self) -> Tensor:
        """Return the mean row norm of the input embeddings; no gradient flows through it."""
        norms: Tensor = self.model.embed_tokens.weight.detach().norm(dim=-1)
        return norms.mean()

    def ridge(self) -> Tensor:
        """Return ``W_a = (W_out^T W_out + 1e-5 I)^-1 W_out^T W_in``, the realignment; no gradient flows."""
        out, into = self.lm_head.weight.detach(), self.model.embed_tokens.weight.detach()
        solved: Tensor = torch.linalg.solve(out.T @ out + 1e-5 * torch.eye(out.shape[1]), out.T @ into)
        return solved


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids and which of them are real, both ``[B, T]``."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    real = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    return ids, real


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn ``[B, T, heads, head_dim]`` by its positions; halves are paired, as in transformers."""
    cos, sin = turn
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def remember(
    network: Network,
    prompts: Sequence[Sequence[Sequence[int]]],
    steps: int,
    pad: int,
    *,
    aligner: Tensor | None = None,
    given: Sequence[Tensor] | None = None,
    only_thoughts: bool = False,
) -> tuple[Memory, list[Tensor]]:
    """Return what the earlier agents leave to the judger, and per agent the vectors that were thought.

    Args:
        network: The model.
        prompts: Per agent, per row: token ids.
        steps: Thoughts after each agent's prompt.
        pad: Id that fills short rows on the left.
        aligner: From `Network.ridge`; None rescales only.
        given: Per agent ``[B, steps, D]``: vectors to feed in place of the own thoughts, at the right norm.
        only_thoughts: Hide the prompts from the judger; positions do not change.
    """
    memory: Memory | None = None
    thought_slots: list[bool] = []
    thoughts: list[Tensor] = []
    for index, agent_prompts in enumerate(prompts):
        ids, real = pad_left(agent_prompts, pad)
        _, memory = network.extend(ids, real, memory)
        if given is None:
            memory, vectors = network.think(memory, steps, aligner)
        else:
            vectors = given[index]
            _, memory = network.extend(vectors, memory=memory)
        thoughts.append(vectors)
        thought_slots += [False] * ids.shape[1] + [True] * steps
    assert memory is not None
    return memory.hide(~torch.tensor(thought_slots)) if only_thoughts else memory, thoughts
