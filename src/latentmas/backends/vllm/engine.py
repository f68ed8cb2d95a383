"""One vLLM engine: how it is started, asked and ended. The only module that talks to vLLM from outside of it."""

from __future__ import annotations

import gc
import math
import platform
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, final

from latentmas.backends.vllm.compatibility import check_hooks, check_installed
from latentmas.backends.vllm.failures import find_cause
from latentmas.backends.vllm.overheard import overheard
from latentmas.backends.vllm.requests import Request
from latentmas.backends.vllm.settings import LatentSettings, latent_name
from latentmas.errors import CapabilityError, ConfigError, EngineError, LatentMASError, NumericalError, SampleError
from latentmas.protocols import ThoughtAccount
from latentmas.samples import FinishReason

OURS: Final = frozenset(
    {
        "model",
        "hf_overrides",
        "scheduler_cls",
        "worker_cls",
        "additional_config",
        "skip_tokenizer_init",
        "enable_prompt_embeds",
    }
)
"""Engine options that decide whether thoughts are right; nobody else sets them."""
FLAGS: Final[Mapping[str, str]] = {
    **{
        name: f"--{name}"
        for name in (
            "dtype",
            "revision",
            "trust_remote_code",
            "tensor_parallel_size",
            "gpu_memory_utilization",
            "enable_prefix_caching",
            "max_model_len",
        )
    },
    "max_num_seqs": "--generate_bs",
}
"""Engine options that have an option of their own."""
_SECONDS_BETWEEN_LOOKS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine is started.

    Attributes:
        model: Hub id or folder.
        architecture: First of the model's own architectures.
        latent: Settings of thoughts; None starts stock vLLM without any class of ours.
        stop_tokens: End-of-text ids; the engine knows no others.
        prompt_embeds: The engine reads input embeddings instead of tokens; stock vLLM only.
        max_model_len: Positions of one request; None is what the model was made for.
        max_num_seqs: Requests that run at once; None is vLLM's default.
        more: Further fields of `EngineArgs`.

    Raises:
        ConfigError: `more` sets what is ours to set.
        CapabilityError: No engine can do this.
    """

    model: str
    architecture: str
    latent: LatentSettings | None
    stop_tokens: frozenset[int]
    prompt_embeds: bool = False
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := sorted(OURS & self.more.keys()):
            raise ConfigError(f"--vllm_options may not set {taken[0]!r}, which latentmas sets itself")
        if taken := sorted(FLAGS.keys() & self.more.keys()):
            raise ConfigError(f"--vllm_options may not set {taken[0]!r}; give {FLAGS[taken[0]]}")
        if self.dtype == "float64":
            raise CapabilityError("vLLM has no float64; use --dtype float32, or leave --use_vllm out")
        if self.latent is not None:
            latent_name(self.architecture)

    def arguments(self) -> dict[str, Any]:
        """Return the fields of `EngineArgs`."""
        chosen: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_prefix_caching": self.enable_prefix_caching,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            # Text is made outside, by the codec that made the prompts.
            "skip_tokenizer_init": True,
            "enable_prompt_embeds": self.prompt_embeds,
            "disable_log_stats": True,
            **(self.latent.engine_options(self.architecture) if self.latent else {}),
            **self.more,
        }
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request that an engine is done with.

    Attributes:
        written: Without end of text.
        finish_reason: None where the request came to nothing.
        reused: Positions that came out of the prefix cache.
        error: Why the request came to nothing, or why what it wrote is worth nothing.
        may_pass: The error lies with the engine, so the same request may go well another time.
        thinking: How the thoughts of each Think of the request changed; empty, or None for one, where nobody measured.
    """

    name: str
    written: tuple[int, ...]
    finish_reason: FinishReason | None
    reused: int = 0
    error: SampleError | None = None
    may_pass: bool = False
    thinking: tuple[ThoughtAccount | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What is known of an engine once it runs.

    Attributes:
        context: Positions of one request.
        vocabulary: Token ids are smaller.
        slot_bytes: Keys and values of one slot, over all devices.
        running: Requests that run at once.
        checkpoint: What `describe_weight` says of every tensor that was read; empty for stock vLLM.
        runner: Model runner of the workers, ``V1`` or ``V2``.
    """

    context: int
    vocabulary: int
    slot_bytes: int
    running: int
    dtype: str
    version: str
    device: str
    device_name: str = ""
    checkpoint: tuple[str, ...] = ()
    runner: str = ""


class Engine(Protocol):
    """What the backend needs of an engine. Any exception but a `SampleError` of `add` means that the engine is lost."""

    @property
    def facts(self) -> EngineFacts: ...
    def add(self, name: str, request: Request, embeddings: Any = None) -> None: ...
    def step(self) -> list[Finished]: ...
    def abort(self, names: Iterable[str]) -> None: ...
    def written(self) -> int:
        """Tokens that the requests in it have written so far."""
        ...

    def close(self) -> None: ...


@final
class VLLMEngine:
    """An engine of vLLM, in this process or in its own: vLLM's environment variables decide.

    Raises:
        CapabilityError: This vLLM, or this configuration of it, cannot run thoughts.
        EngineError: It did not start.
    """

    def __init__(self, options: EngineOptions) -> None:
        check_installed()
        if options.latent is not None:
            check_hooks()
        from vllm import EngineArgs, envs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        self._stop_tokens = options.stop_tokens
        self._closed = threading.Event()
        self._measures = options.latent is not None and options.latent.measures
        self._thinks: dict[str, tuple[tuple[int, int], ...]] = {}
        try:
            arguments = EngineArgs(**options.arguments())
        except TypeError as error:
            raise ConfigError(f"--vllm_options has an option that vLLM does not know: {error}") from error
        # Whoever wants to hear more than errors hears it at once.
        calm = envs.VLLM_LOGGING_LEVEL == "ERROR"
        listening = overheard(held=calm) if envs.VLLM_ENABLE_V1_MULTIPROCESSING else nullcontext()
        with listening as heard:
            try:
                config = arguments.create_engine_config(UsageContext.LLM_CLASS)
                if options.latent is not None:
                    check_hooks(config)
                self._engine = LLMEngine(
                    vllm_config=config,
                    executor_class=Executor.get_class(config),
                    log_stats=False,
                    usage_context=UsageContext.LLM_CLASS,
                    multiprocess_mode=envs.VLLM_ENABLE_V1_MULTIPROCESSING,
                )
                self._watch_over(self._engine.engine_core)
                self.facts = self._facts(config, latent=options.latent is not None)
            except LatentMASError:
                self.close()
                raise
            except Exception as error:  # whatever stops an engine from starting: memory, devices, kernels, its options
                self.close()
                said = heard.text() if heard is not None else ""
                cause, more = find_cause(error, said), ""
                if cause.remedy is None and (said or heard is None):
                    more = "; its own messages above say more"
                elif said and calm and heard is not None:
                    heard.drop()
                    more = " (VLLM_LOGGING_LEVEL=WARNING shows its own messages)"
                raise EngineError(f"vLLM did not start: {cause}{more}") from error

    def add(self, name: str, request: Request, embeddings: Any = None) -> None:
        """Queue a request.

        Args:
            embeddings: ``[tokens, E]`` to read in place of the tokens.

        Raises:
            SampleError: The engine refuses it, and is as good as before.
        """
        tokens = list(request.tokens)
        prompt: Any = {"prompt_token_ids": tokens} if embeddings is None else {"prompt_embeds": embeddings}
        try:
            self._engine.add_request(name, prompt, self._parameters(request))
        except ValueError as error:
            raise SampleError(f"vLLM refuses the request: {_first_line(error)}") from error
        if self._measures and request.thinks:
            self._thinks[name] = request.thinks

    def step(self) -> list[Finished]:
        """Let the engine work until it has something to say; return the requests that ended."""
        finished = [self._finished(output) for output in self._engine.step() if output.finished]
        wanted = [(item.name, thinks) for item in finished if (thinks := self._thinks.pop(item.name, ()))]
        if not wanted:
            return finished
        # Once for all that ended in a step; every worker has the same thoughts.
        [answers, *_] = self._engine.collective_rpc("latentmas_thinking", args=(wanted,))
        thinking = {name: _thinking(answer) for (name, _), answer in zip(wanted, answers, strict=True)}
        return [replace(item, thinking=thinking.get(item.name, ())) for item in finished]

    def abort(self, names: Iterable[str]) -> None:
        gone = list(names)
        for name in gone:
            self._thinks.pop(name, None)
        self._engine.abort_request(gone)

    def written(self) -> int:
        states = self._engine.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def close(self) -> None:
        """End the engine's processes and give its memory back. Also works on an engine that broke."""
        engine = self.__dict__.pop("_engine", None)
        if engine is None:
            return
        self._closed.set()
        here = not hasattr(engine.engine_core, "outputs_queue")
        engine.engine_core.shutdown()
        del engine
        gc.collect()
        if here:  # what the engine set up in this process would be in the way of the next one
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _watch_over(self, client: Any) -> None:
        """Let `step` fail when the engine's process is killed; vLLM's own client would wait for it forever."""
        if not hasattr(client, "outputs_queue"):
            return  # the engine lives in this process
        closed = self._closed

        def watch() -> None:
            while not closed.wait(_SECONDS_BETWEEN_LOOKS):
                if client.resources.engine_dead:
                    client.outputs_queue.put_nowait(RuntimeError("the engine's process ended"))
                    return

        threading.Thread(target=watch, name="latentmas-engine-watch", daemon=True).start()

    def _parameters(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=1.0 if sampling.greedy else sampling.top_p,
            top_k=0 if sampling.greedy else sampling.top_k,
            min_p=0.0 if sampling.greedy else sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=None if sampling.greedy else request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted(self._stop_tokens),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            logprobs=0,  # of the chosen token alone: the only public sign of numbers that are not finite
            flat_logprobs=True,
        )

    def _finished(self, output: Any) -> Finished:
        [completion] = output.outputs
        written = tuple(completion.token_ids)
        reason = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}.get(completion.finish_reason)
        if reason is FinishReason.STOP and written and written[-1] in self._stop_tokens:
            written = written[:-1]
        error: SampleError | None = None
        if reason is None:
            error = SampleError(f"vLLM gave the request up ({completion.finish_reason})")
        elif completion.cumulative_logprob is not None and math.isnan(completion.cumulative_logprob):
            error = NumericalError("a thought or a logit is not finite; try another dtype (--dtype float32)")
        return Finished(
            name=output.request_id,
            written=written,
            finish_reason=reason,
            reused=output.num_cached_tokens or 0,
            error=error,
            may_pass=reason is None,
        )

    def _facts(self, config: Any, *, latent: bool) -> EngineFacts:
        import vllm
        from vllm.platforms import current_platform

        model, parallel = config.model_config, config.parallel_config
        heads = model.get_total_num_kv_heads()
        layers = model.get_num_layers(parallel)
        report = self._engine.collective_rpc("latentmas_report")[0] if latent else {}
        return EngineFacts(
            context=model.max_model_len,
            vocabulary=model.get_vocab_size(),
            slot_bytes=2 * layers * heads * model.get_head_size() * model.dtype.itemsize,
            running=config.scheduler_config.max_num_seqs,
            dtype=str(model.dtype).removeprefix("torch."),
            version=vllm.__version__,
            device=str(current_platform.device_type),
            device_name=platform.machine() if current_platform.is_cpu() else current_platform.get_device_name(),
            checkpoint=tuple(report.get("checkpoint", ())),
            runner=report.get("runner", ""),
        )


def _thinking(answer: Iterable[Mapping[str, Any] | None]) -> tuple[ThoughtAccount | None, ...]:
    return tuple(
        None
        if found is None
        else ThoughtAccount(
            cosines=tuple(found["cosines"]),
            hidden_norms=tuple(found["hidden_norms"]),
            effective_rank=found["effective_rank"],
            collapsed_after=found["collapsed_after"],
        )
        for found in answer
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
