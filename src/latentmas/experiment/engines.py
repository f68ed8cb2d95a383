"""From the options of a run to an engine of vLLM. Imports it only when one is opened."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentmas.backends.gguf_file import is_gguf
from latentmas.errors import CapabilityError, ConfigError
from latentmas.experiment.config import RunConfig, calm_vllm
from latentmas.experiment.models import SCRIPTED, load_options, open_transformers
from latentmas.protocols import Backend, Capability, Codec, Method, Report

if TYPE_CHECKING:
    from latentmas.backends.vllm.engine import EngineOptions
    from latentmas.backends.vllm.settings import LatentSettings


def check_vllm(config: RunConfig, method: Method, codec: Codec) -> None:
    """Refuse what vLLM cannot run, before it is imported.

    Raises:
        CapabilityError: It is not installed, or cannot do this; says which backend can.
    """
    from latentmas.backends.vllm import compatibility

    if config.model_name == SCRIPTED:
        raise ConfigError(f"{SCRIPTED!r} is a backend without a model; drop --use_vllm")
    _refuse_gguf(config.model_name)
    thinks = Capability.MEMORY in method.needs
    refuse_missing(config, method)
    if thinks and config.repetition_penalty != 1:
        raise CapabilityError(
            f"vLLM would count the prompts of all agents into --repetition_penalty {config.repetition_penalty:g}, and "
            "only the last agent's own belongs there; leave it at 1, or leave --use_vllm out: the transformers backend "
            "can"
        )
    compatibility.check_installed()
    if thinks and config.use_second_HF_model:
        _for_second_model(config)
    vllm_options(config, codec, thinks=thinks)


def refuse_missing(config: RunConfig, method: Method) -> None:
    """Refuse a method that needs what no engine has; needs no vLLM to know.

    Raises:
        CapabilityError: Names the option, and the backend that can.
    """
    from latentmas.backends.vllm import backend

    can = backend.LATENT_CAPABILITIES if Capability.MEMORY in method.needs else backend.STOCK_CAPABILITIES
    if missing := method.needs - can:
        names = {
            Capability.NOISE: "--control noise",
            Capability.PARTIAL_HANDOVER: f"--handover {config.handover}",
            Capability.JOIN: "independent agents (--topology parallel)",
            Capability.HANDOVER_FILTER: "hand-overs that filter, move or pack memory",
        }
        what = ", ".join(sorted(names.get(each, each.value) for each in missing))
        raise CapabilityError(f"the vllm backend cannot do {what}; leave --use_vllm out: the transformers backend can")


def vllm_options(config: RunConfig, codec: Codec, *, thinks: bool, with_text: bool = False) -> EngineOptions:
    """Return how the engine of a run is started; reads no weights.

    Args:
        thinks: The method has thoughts; without them the engine is stock vLLM.
        with_text: Take a placeholder that has a text, where the model has one.

    Raises:
        CapabilityError: No engine can run this model or this dtype.
    """
    from latentmas.backends.hf.chat import ChatCodec
    from latentmas.backends.hf.load import load_config, load_stop_tokens
    from latentmas.backends.vllm.engine import EngineOptions

    assert isinstance(codec, ChatCodec)
    _refuse_gguf(config.model_name)
    options = load_options(config)
    model = load_config(options)
    [architecture, *_] = model.architectures or ["a model without architectures in its configuration"]
    stop_tokens = load_stop_tokens(options, model, codec.tokenizer)
    settings = None
    if thinks and not config.use_second_HF_model:
        settings = _settings(config, codec.tokenizer, model, stop_tokens, with_text=with_text)
    on_cpu = options.resolved_device().type == "cpu"
    return EngineOptions(
        model=options.model_name,
        architecture=architecture,
        latent=settings,
        stop_tokens=stop_tokens,
        prompt_embeds=thinks and config.use_second_HF_model,
        dtype="float32" if config.dtype == "auto" and on_cpu else config.dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        tensor_parallel_size=config.tensor_parallel_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_prefix_caching=config.enable_prefix_caching,
        max_model_len=config.max_model_len,
        # The published default is a batch size of transformers; vLLM has a better one of its own.
        max_num_seqs=config.generate_bs if "generate_bs" in config.model_fields_set else None,
        more=json.loads(config.vllm_options),
    )


def _refuse_gguf(model_name: str) -> None:
    if is_gguf(model_name):
        raise CapabilityError(
            f"the vllm backend takes no GGUF file such as {model_name!r}; give it a transformers folder made from the "
            "file, as docs/real-models.md shows, or leave --use_vllm out: the transformers backend takes the file"
        )


def _settings(
    config: RunConfig, tokenizer: Any, model: Any, stop_tokens: Collection[int], *, with_text: bool
) -> LatentSettings:
    from latentmas.backends.vllm.placeholder import choose_placeholder
    from latentmas.backends.vllm.settings import LatentSettings, latent_name

    latent_name(model.architectures[0] if model.architectures else "a model without architectures")
    vocabulary = model.get_text_config().vocab_size
    return LatentSettings(
        placeholder=choose_placeholder(tokenizer, vocabulary=vocabulary, stop_tokens=stop_tokens, with_text=with_text),
        alignment=config.alignment_name,
        soft_temperature=config.soft_temperature,
        tokens=len(tokenizer),
    )


def open_vllm(config: RunConfig, codec: Codec, *, thinks: bool, report: Report = lambda progress: None) -> Backend:
    """Start an engine and return the backend on it.

    Args:
        report: Is told what is being done, now and while programs run.

    Raises:
        EngineError: It does not start.
        CapabilityError: This vLLM lacks something, or this model cannot be run.
    """
    from latentmas.backends.vllm.backend import VLLMBackend
    from latentmas.backends.vllm.engine import Engine, EngineFacts, VLLMEngine

    calm_vllm()
    options = vllm_options(config, codec, thinks=thinks)
    if options.latent is not None:
        options = replace(options, latent=replace(options.latent, measures=True))
    shared = {
        "alignment": config.alignment_name,
        "stop_tokens": " ".join(map(str, sorted(options.stop_tokens))),
    }
    if options.prompt_embeds:
        from latentmas.backends.vllm.hybrid import THOUGHT, HybridEngine

        thinker = open_transformers(_for_second_model(config), codec, [Capability.MEMORY], report)
        hybrid = {**shared, "model_fingerprint": thinker.model.fingerprint, "thoughts": "transformers"}
        return VLLMBackend(
            lambda: HybridEngine(thinker, VLLMEngine(options)),
            codec,
            placeholder=THOUGHT,
            model_id=config.model_name,
            environment=lambda facts: hybrid,
            report=report,
        )

    def environment(facts: EngineFacts) -> dict[str, str | None]:
        return {**shared, "model_fingerprint": _fingerprint(config, facts.checkpoint)}

    def start() -> Engine:
        return VLLMEngine(options)

    placeholder = options.latent.placeholder if options.latent else None
    return VLLMBackend(
        start, codec, placeholder=placeholder, model_id=config.model_name, environment=environment, report=report
    )


def _fingerprint(config: RunConfig, checkpoint: Sequence[str]) -> str:
    """Return a digest of a model: of every bit where the engine told, else of its files or its commit."""
    from latentmas.backends import fingerprint
    from latentmas.backends.hf.load import load_config

    options = load_options(config)
    model = load_config(options)
    weights = list(checkpoint)
    if not weights:
        folder = Path(options.model_name)
        files = sorted(path for suffix in ("*.safetensors", "*.bin") for path in folder.glob(suffix))
        weights = [fingerprint.describe_file(path) for path in files]
        weights = weights or [f"{options.model_name} {getattr(model, '_commit_hash', None)}"]
    return fingerprint.digest(model.get_text_config().to_dict(), weights)


def _for_second_model(config: RunConfig) -> RunConfig:
    """Return the options of the model that thinks beside an engine.

    Raises:
        ConfigError: Its device is not there.
    """
    placed = config.model_copy(update={"device": config.device2, "device_map": None})
    try:
        load_options(placed).resolved_device()
    except ConfigError as error:
        raise ConfigError(
            f"--device2 is {config.device2}, which torch cannot use here; the second model of --use_second_HF_model "
            "needs a device of its own: give --device2 cuda:1, cuda:0 or cpu"
        ) from error
    return placed
