"""vLLM's own model classes with a place for thoughts: one line per architecture.

The class reads thoughts in `forward`, outside of what vLLM compiles and inside of what it captures as full CUDA graphs,
and makes them in `compute_logits`, which both model runners call with the last hidden state of every request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.models.gemma import GemmaForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from latentmas.alignment import AlignmentKind, EmbeddingSpace, build_alignment
from latentmas.backends.fingerprint import describe_weight
from latentmas.backends.vllm.recorder import Recorder
from latentmas.backends.vllm.settings import SCHEDULER, LatentSettings
from latentmas.backends.vllm.thoughts import Thoughts
from latentmas.errors import CapabilityError

RECORDED: Final = 4
"""Requests whose thoughts are kept, for each that can run: those that wait or have just ended as well."""


class _Thinks:
    """Stands before a model class of vLLM."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._latent_config = vllm_config
        self._latent_settings = LatentSettings.of(vllm_config)
        self.thoughts: Thoughts | None = None
        self.checkpoint: list[str] = []
        """What the weights were when they were read: one line per tensor, on the first worker only."""

    def forward(
        self, input_ids: Any, positions: Any, intermediate_tensors: Any = None, inputs_embeds: Any = None
    ) -> Any:
        if inputs_embeds is None:
            assert self.thoughts is not None
            inputs_embeds = self.thoughts.overlay(self.embed_input_ids(input_ids))  # type: ignore[attr-defined]
        return super().forward(None, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]

    def compute_logits(self, hidden_states: Tensor) -> Any:
        if self.thoughts is not None:
            self.thoughts.tap(hidden_states)
        return super().compute_logits(hidden_states)  # type: ignore[misc]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = super().load_weights(self._described(weights))  # type: ignore[misc]
        return loaded

    def open_thoughts(self) -> Thoughts:
        """Build the alignment and the store, once the weights are loaded and before memory is given to the KV cache.

        Raises:
            CapabilityError: The alignment cannot be had here, or the engine has another scheduler than ours.
        """
        config, settings = self._latent_config, self._latent_settings
        if config.scheduler_config.scheduler_cls != SCHEDULER:
            raise CapabilityError(
                f"thoughts need the scheduler {SCHEDULER}; give it as --scheduler-cls, as `latentmas vllm` prints it"
            )
        space = self._space()
        if settings.alignment == AlignmentKind.SOFT and get_tensor_model_parallel_world_size() > 1:
            raise CapabilityError("--alignment soft needs all logits in one place; use --tensor_parallel_size 1")
        alignment = build_alignment(
            AlignmentKind(settings.alignment), space, soft_temperature=settings.soft_temperature
        )
        scheduler = config.scheduler_config
        self.thoughts = Thoughts(
            alignment,
            slots=scheduler.max_num_seqs,
            rows=scheduler.max_num_batched_tokens,
            hidden_size=space.head.shape[1],
            dtype=config.model_config.dtype,
            device=space.head.device,
            recorder=Recorder(RECORDED * scheduler.max_num_seqs)
            if settings.measures and get_tensor_model_parallel_rank() == 0
            else None,
        )
        return self.thoughts

    def _space(self) -> EmbeddingSpace:
        """Return what alignments need. The head is spread over workers by rows; embedding looks rows up on all."""
        head, base = self.lm_head, super()  # type: ignore[attr-defined]
        held = head.shard_indices
        rows = held.org_vocab_end_index - held.org_vocab_start_index  # without padding
        vocabulary = self._latent_config.model_config.get_vocab_size()
        if (tokens := self._latent_settings.tokens) is not None:
            vocabulary = min(tokens, vocabulary)
        return EmbeddingSpace(
            embed=self.embed_input_ids,  # type: ignore[attr-defined]
            head=head.weight.detach()[:rows],
            logits=base.compute_logits,  # type: ignore[misc, attr-defined, unused-ignore]
            vocabulary=vocabulary,
            tied=bool(self._latent_config.model_config.hf_text_config.tie_word_embeddings),
            compute=torch.float32,
            first_row=held.org_vocab_start_index,
            total=_total,
        )

    def _described(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        model = self._latent_config.model_config
        first = get_tensor_model_parallel_rank() == 0
        device = self.lm_head.weight.device  # type: ignore[attr-defined]
        skipped = {"lm_head.weight"} if model.hf_text_config.tie_word_embeddings else set()
        for name, weight in weights:
            if first and name not in skipped and not name.endswith("inv_freq"):
                dtype = model.dtype if weight.is_floating_point() else weight.dtype  # what is packed stays as it is
                self.checkpoint.append(describe_weight(name, weight.to(device, dtype)))
            yield name, weight

    @staticmethod
    def get_model_state_cls() -> Any:
        """Called by the V2 model runner."""
        from latentmas.backends.vllm.model_state import LatentModelState

        return LatentModelState


def _total(tensor: Tensor) -> Tensor:
    """Return the sum over all workers, in place, in any dtype: vLLM's own way has no float64 on some CPUs."""
    if get_tensor_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(tensor, group=get_tp_group().device_group)
    return tensor


class LatentQwen3ForCausalLM(_Thinks, Qwen3ForCausalLM):
    """Qwen3 with thoughts."""


class LatentQwen2ForCausalLM(_Thinks, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5 with thoughts."""


class LatentLlamaForCausalLM(_Thinks, LlamaForCausalLM):
    """Llama with thoughts."""


class LatentMistralForCausalLM(_Thinks, MistralForCausalLM):
    """Mistral with thoughts."""


class LatentGemmaForCausalLM(_Thinks, GemmaForCausalLM):
    """Gemma with thoughts; its embedding scales, so what is fed back is scaled as well."""
