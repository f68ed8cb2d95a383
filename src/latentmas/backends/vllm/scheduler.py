"""The scheduler of an engine that thinks: stock vLLM, but for where chunks and prefix-cache hits may end.

Relies on private methods of vLLM's scheduler; `compatibility` checks that they are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig

from latentmas.backends.vllm.chunks import chunk_length, is_thought, thought_positions
from latentmas.backends.vllm.compatibility import check_hooks
from latentmas.backends.vllm.settings import LatentSettings


def latent_scheduler(*, vllm_config: Any, **options: Any) -> Scheduler:
    """Return the scheduler of an engine; this is what ``scheduler_cls`` names.

    Raises:
        CapabilityError: This vLLM, or this configuration of it, cannot run thoughts.
    """
    check_hooks(vllm_config)
    if current_platform.is_cpu() and not vllm_config.use_v2_model_runner:
        options["kv_cache_config"] = _zeroed(options["kv_cache_config"])
    asynchronous = vllm_config.scheduler_config.async_scheduling
    kind = _LatentAsyncScheduler if asynchronous else _LatentScheduler
    return kind(vllm_config=vllm_config, **options)


class _ThoughtRules:
    """The three rules, to stand before a scheduler of vLLM."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._placeholder = LatentSettings.of(options["vllm_config"]).placeholder
        self._thoughts: WeakKeyDictionary[Any, tuple[int, tuple[int, ...]]] = WeakKeyDictionary()
        self._with_salt: WeakSet[Any] = WeakSet()

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Let a chunk contain a thought only as its first token."""
        longest = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)  # type: ignore[misc]
        return chunk_length(self._thoughts_of(request), num_computed_tokens, longest)

    def _get_local_prefix_cache_hit(self, request: Any, *limits: Any) -> Any:
        """Never start behind a cached prefix with a thought: the hidden state before it is not in the cache.

        A shorter hit is looked up anew, not cut off: sliding-window layers keep other blocks for it.
        """
        blocks, length, *rest = super()._get_local_prefix_cache_hit(request, *limits)  # type: ignore[misc]
        thoughts = self._thoughts_of(request)
        manager = self.kv_cache_manager  # type: ignore[attr-defined]
        while length and is_thought(thoughts, length):
            found, length, *_ = manager.coordinator.find_longest_cache_hit(request.block_hashes, length - 1)
            blocks = manager.create_kv_cache_blocks(found)
        return blocks, length, *rest

    def _update_request_with_output(self, request: Any, new_token_ids: list[int], *args: Any, **options: Any) -> Any:
        """Keep a placeholder that was *written*, an ordinary token, apart from thoughts in the prefix cache."""
        hashes = request._block_hasher is not None
        if hashes and self._placeholder in new_token_ids and request not in self._with_salt:
            self._with_salt.add(request)
            request._block_hasher = _salted(request._block_hasher, request.request_id)
        return super()._update_request_with_output(request, new_token_ids, *args, **options)  # type: ignore[misc]

    def _thoughts_of(self, request: Any) -> tuple[int, ...]:
        # The prompt of a streaming session grows.
        length, known = self._thoughts.get(request, (-1, ()))
        if length != request.num_prompt_tokens:
            known = thought_positions(request.prompt_token_ids or (), self._placeholder)
            self._thoughts[request] = (request.num_prompt_tokens, known)
        return known


class _LatentScheduler(_ThoughtRules, Scheduler):
    """For engines that wait for every step."""


class _LatentAsyncScheduler(_ThoughtRules, AsyncScheduler):
    """For engines that schedule the next step while one runs."""


class _ZeroedKVCacheConfig(KVCacheConfig):
    """Asks for new blocks to be zeroed, which vLLM can do and does for some models."""

    needs_kv_cache_zeroing = True


def _zeroed(config: Any) -> Any:
    """Keep numbers that are not finite inside of their own request.

    The attention of the V1 runner on a CPU multiplies the unwritten slots of a block by zero. Where a request that
    broke has left NaN in a block, the next one to get it would break as well.
    """
    own = copy(config)
    own.__class__ = _ZeroedKVCacheConfig
    return own


def _salted(hasher: Callable[[Any], list[Any]], salt: str) -> Callable[[Any], list[Any]]:
    """Return a block hasher whose hashes no other request can have."""

    def hashes(request: Any) -> list[Any]:
        return [hashlib.sha256(salt.encode() + digest).digest() for digest in hasher(request)]

    return hashes
