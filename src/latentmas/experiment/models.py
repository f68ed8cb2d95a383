"""From the options of a run to its tokenizer and its model on transformers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentmas import tiny
from latentmas.backends import gguf_file
from latentmas.backends.scripted import ByteCodec
from latentmas.errors import ConfigError
from latentmas.experiment.config import RunConfig
from latentmas.experiment.effects import Situation
from latentmas.protocols import Capability, Codec, Phase, Progress, Report
from latentmas.samples import Message

if TYPE_CHECKING:
    from latentmas.backends.hf.backend import HFBackend
    from latentmas.backends.hf.options import LoadOptions

EMBEDDED: Final = "tiny"
"""Model name of the model that ships with the package."""
SCRIPTED: Final = "scripted"
"""Model name of the backend without a model, for trying things out."""


def model_defaults(model_name: str) -> Mapping[str, object]:
    """Return what a local model folder recommends in its ``latentmas.json``; nothing where it has none."""
    path = Path(_location(model_name)) / "latentmas.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; expected an object of options and values")
    return content


def recommended_sampling(config: RunConfig) -> Mapping[str, float | int]:
    """Return how the model folder recommends to sample; nothing for a backend without a model."""
    if config.model_name == SCRIPTED:
        return {}
    from latentmas.backends.hf import recommended

    return recommended.recommended_sampling(load_options(config))


def open_codec(config: RunConfig, *, begun: datetime.date | None = None) -> Codec:
    """Return the tokenizer side of a model, and check its configuration; loads no weights.

    Args:
        begun: The day that chats show where neither ``--date`` says it; None is today.

    Raises:
        ConfigError: The model cannot be used, or ``--date`` is given and chats show no day.
    """
    codec = _codec(config, config.date or begun or datetime.date.today())
    if config.date is not None and codec.printed_date is None:
        raise ConfigError(
            f"--date is {config.date}, and no chat of {config.model_name!r} shows a date; leave --date out"
        )
    return codec


def _codec(config: RunConfig, date: datetime.date) -> Codec:
    if config.model_name == SCRIPTED:
        return ByteCodec()
    from latentmas.backends.hf.chat import ChatCodec
    from latentmas.backends.hf.load import load_config, load_tokenizer

    options = load_options(config)
    options.resolved_device()
    load_config(options)
    return ChatCodec(load_tokenizer(options), enable_thinking=config.enable_thinking, date=date)


def looked_at(situation: Situation, config: RunConfig, codec: Codec) -> Situation:
    """Return a situation with what can be known of the model; reads no weights."""
    question = [Message("user", "How many?")]
    opens = codec.encode_chat(question, think=True) == codec.encode_chat(question)
    if config.model_name == SCRIPTED:
        return replace(situation, scripted=True, brings_code=False, thinking_matters=False, opens_thought=opens)
    from latentmas.backends.hf.chat import ChatCodec

    assert isinstance(codec, ChatCodec)
    is_file = gguf_file.is_gguf(config.model_name)
    return replace(
        situation,
        local=config.model_name == EMBEDDED or Path(config.model_name).exists(),
        brings_code=not (config.model_name == EMBEDDED or is_file),
        tied=config.alignment_name == "ridge" and _is_tied(config),
        has_template=codec.has_template,
        thinking_matters=(thinking := codec.thinking()).matters,
        thinks_unless_told=thinking.unless_told,
        opens_thought=opens,
    )


def _is_tied(config: RunConfig) -> bool:
    """Return whether the input and the output embedding of a model are one matrix."""
    from latentmas.backends.hf.load import load_config

    return bool(getattr(load_config(load_options(config)).get_text_config(), "tie_word_embeddings", False))


def open_transformers(
    config: RunConfig,
    codec: Codec,
    needs: Collection[Capability] = (),
    report: Report = lambda progress: None,
) -> HFBackend:
    """Load the weights and return a backend that is known to run this model exactly.

    Args:
        needs: What the method will ask for; the model is tried with it.
        report: Is told what is being done, now and while programs run.
    """
    from latentmas.alignment import AlignmentKind, build_alignment
    from latentmas.backends.hf.backend import HFBackend
    from latentmas.backends.hf.chat import ChatCodec
    from latentmas.backends.hf.load import load_model
    from latentmas.backends.hf.verify import verified
    from latentmas.experiment.artifacts import open_sink

    assert isinstance(codec, ChatCodec)
    report(Progress(phase=Phase.LOADING))
    model = load_model(load_options(config), codec.tokenizer)
    report(Progress(phase=Phase.CHECKING))
    model = verified(model, thinks=Capability.MEMORY in needs, joins=Capability.JOIN in needs)
    dtype = str(model.dtype).removeprefix("torch.")
    space = model.space(len(codec.tokenizer))
    ridge = f"ridge-{model.fingerprint}-{space.vocabulary}-{dtype}.safetensors"
    report(Progress(phase=Phase.ALIGNING))
    alignment = build_alignment(
        AlignmentKind(config.alignment_name),
        space,
        soft_temperature=config.soft_temperature,
        cache_file=config.cache_folder / "alignment" / ridge,
    )
    return HFBackend(
        model,
        codec,
        alignment,
        batch_size=config.generate_bs,
        model_id=config.model_name,
        sink=open_sink(config, space),
        report=report,
    )


def load_options(config: RunConfig) -> LoadOptions:
    from latentmas.backends.hf.options import LoadOptions

    return LoadOptions(
        model_name=_location(config.model_name),
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        revision=config.revision,
    )


def _location(model_name: str) -> str:
    """Return where transformers finds a model: the name itself, but for the embedded one."""
    return str(tiny.model_folder()) if model_name == EMBEDDED else model_name
