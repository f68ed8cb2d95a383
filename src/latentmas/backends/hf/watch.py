"""Seeing what a model attends to, without asking it for attention weights.

transformers hands queries, keys and mask of every layer to an attention function that is looked up by name; for a
watched forward pass that name is ours. Queries arrive there rotated and normed, so nothing of an architecture is
repeated here. Weights exist for a few heads of one row at a time. The model's own attention goes on computing its
output, but for a prompt that is only read on trial: there the weights, which exist anyway, make it.

Shape letters: B rows, L layers, H key/value heads, G query heads that share one of them, T new slots (the last T of S),
D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from latentmas.backends.hf.load import LoadedModel
from latentmas.errors import CapabilityError
from latentmas.memory import LatentMemory

WATCHED: Final = "latentmas_watched"
SLICE_OF_CORE: Final = 1 << 19
LARGEST_CPU_SLICE: Final = 1 << 22
LARGEST_SLICE: Final = 1 << 25
"""Attention weights that exist at a time, at most, unless one head needs more. On a CPU 2 MiB for each core (float32)
stay in its caches, and what is larger than 16 MiB would be asked of the system anew each time; elsewhere larger is
better (128 MiB)."""

_watch: ContextVar[Watch | None] = ContextVar("latentmas_watch", default=None)
_inner: ContextVar[str] = ContextVar("latentmas_inner", default="sdpa")


class Watch:
    """Adds up attention, over the real ones of the new slots, to each slot of each layer and head.

    Args:
        valid: ``[B, T]`` bool: which of the new slots are no padding.
        memory: Which the new slots were added to.
        checks: Compare the weights with what the model's own attention made of them.
        trial: What the model makes of the new slots is not wanted: the weights make the output of a layer, and none is
            made in the last one.
        sums: Add weights up; without it sums are 0, and only peaks are there.
    """

    def __init__(
        self, valid: Tensor, memory: LatentMemory, *, checks: bool = False, trial: bool = False, sums: bool = True
    ) -> None:
        self._valid = valid
        self._memory = memory
        self._checks = checks
        self.trial = trial
        self._sums = sums
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.error = 0.0

    def see(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, output: Tensor | None, how: Any
    ) -> Tensor:
        """Take in one layer; return what attention makes of it, ``[B, T, H G, D]``: `output`, or its own on a trial.

        Args:
            query: ``[B, H G, T, D]``, rotated.
            key: ``[B, H, S, D]``; with H G heads where a model repeats them first.
            mask: ``[B, 1, T, S]``: bool, or what eager attention adds.
            output: What the model's attention made of it; None on a trial.
            how: What else the attention function was given.
        """
        rows, heads, new, width = query.shape
        groups, slots = key.shape[1], key.shape[2]
        share = heads // groups
        exact = torch.promote_types(query.dtype, torch.float32)
        hidden = ~(mask[:, 0, -new:, :slots] if mask.dtype == torch.bool else mask[:, 0, -new:, :slots] == 0)
        anywhere = hidden.any(dim=0).any(dim=0).nonzero()
        first = int(anywhere[0]) if len(anywhere) else slots  # what stands before is seen by all
        scale = how.get("scaling") or width**-0.5
        cap, sink = how.get("softcap"), how.get("s_aux")
        total = torch.zeros(rows, groups, slots, dtype=exact, device=query.device)
        peak = torch.empty_like(total)
        last = layer == self._memory.layers - 1
        made = query.new_zeros(rows, heads, new, value.shape[3])
        step = max(1, _slice(query.device) // (share * new * slots))
        for row in range(rows):
            real = self._valid[row].to(exact)
            for start in range(0, groups, step):
                part = slice(start, min(groups, start + step))
                many = slice(part.start * share, part.stop * share)
                asked = query[row, many].to(exact).reshape(-1, share * new, width) * scale  # [h, G T, D]
                scores = torch.bmm(asked, key[row, part].to(exact).transpose(1, 2)).view(-1, share, new, slots)
                if cap is not None:
                    scores = torch.tanh(scores / cap) * cap
                scores[..., first:].masked_fill_(hidden[row, :, first:], -torch.inf)
                if sink is not None:  # a head's own logit that takes weight and gives nothing
                    extra = sink.to(exact)[many].view(-1, share, 1, 1).expand(-1, -1, new, 1)
                    weights = torch.cat([scores, extra], dim=-1).softmax(dim=-1)[..., :-1]
                else:
                    weights = scores.softmax(dim=-1)
                if self._checks or (self.trial and not last):
                    flat = weights.reshape(-1, share * new, slots)
                    made[row, many] = torch.bmm(flat, value[row, part].to(exact)).view(-1, new, value.shape[3]).to(made)
                weights = weights * real[:, None] if not bool(real.all()) else weights
                if self._sums:
                    total[row, part] = weights.sum(dim=(1, 2)) / share
                peak[row, part] = weights.amax(dim=(1, 2))
        # Where keys were repeated before, those that share a head are one again.
        shared = (rows, self._memory.keys(layer).shape[1], -1, slots)
        self.layers[layer] = total.view(shared).mean(dim=2), peak.view(shared).amax(dim=2)
        made = made.transpose(1, 2).contiguous()
        if output is None:
            return made
        if self._checks:
            off = ((made - output).abs() * self._valid[:, :, None, None]).amax()
            self.error = max(self.error, float(off / made.abs().max().clamp_min(1e-6)))
        return output

    def attention(self, model: LoadedModel) -> tuple[Tensor, Tensor]:
        """Return what was seen on the device where thoughts enter, ``[L, B, H, S]`` each.

        The first is a sum over the new slots, and a mean over the query heads that share a key/value head; the second
        is the largest weight that any of them gave.

        Raises:
            CapabilityError: The model attends in a way that cannot be watched.
        """
        if sorted(self.layers) != list(range(model.layers)):
            raise CapabilityError(
                f"the attention of {model.kind} cannot be watched: {len(self.layers)} of its {model.layers} layers "
                "call the attention functions of transformers; use a filter that does not look at attention"
            )
        layers = [self.layers[layer] for layer in range(model.layers)]
        sums, peaks = (torch.stack([part.to(model.device) for part in parts]) for parts in zip(*layers, strict=True))
        return sums, peaks


@contextmanager
def watching(model: LoadedModel, watch: Watch) -> Iterator[None]:
    """Let a watch see every attention that `model` computes inside of the block."""
    AttentionInterface.register(WATCHED, _watched)
    config = model.causal.config.get_text_config()
    before = config._attn_implementation
    tokens = _watch.set(watch), _inner.set(before)
    config._attn_implementation = WATCHED
    try:
        yield
    finally:
        config._attn_implementation = before
        _watch.reset(tokens[0])
        _inner.reset(tokens[1])


def _slice(device: torch.device) -> int:
    if device.type != "cpu":
        return LARGEST_SLICE
    return min(torch.get_num_threads() * SLICE_OF_CORE, LARGEST_CPU_SLICE)


def _watched(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **how: Any
) -> tuple[Tensor, Tensor | None]:
    watch = _watch.get()
    if watch is not None and watch.trial:
        return watch.see(module.layer_idx, query, key, value, mask=attention_mask, output=None, how=how), None
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(_inner.get(), eager)  # type: ignore[arg-type]
    output: tuple[Tensor, Tensor | None] = attend(module, query, key, value, attention_mask, **how)
    if watch is not None:
        watch.see(module.layer_idx, query, key, value, mask=attention_mask, output=output[0], how=how)
    return output
