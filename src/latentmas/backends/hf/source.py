"""Where transformers finds a model: under a name, in a folder, or in one GGUF file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentmas.backends.gguf_file import check_file, is_gguf
from latentmas.backends.hf.options import LoadOptions
from latentmas.errors import CapabilityError, ConfigError


@contextmanager
def located(options: LoadOptions) -> Iterator[dict[str, Any]]:
    """Yield the arguments by which every ``from_pretrained`` of transformers finds the model, as long as it reads.

    A GGUF file is shown to transformers alone: it would take a tokenizer and a chat template that happen to lie beside
    the file, and those may be of another model.

    Raises:
        ConfigError, CapabilityError: It is a GGUF file, and not a good one.
    """
    shared = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
    if not is_gguf(options.model_name):
        yield {"pretrained_model_name_or_path": options.model_name, **shared}
        return
    path = Path(options.model_name)
    check_file(path)
    with tempfile.TemporaryDirectory(prefix="latentmas-gguf-") as folder, _bar_as_told():
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": path.name, **shared}


def config_of_gguf(options: LoadOptions, where: dict[str, Any]) -> Any:
    """Return the configuration transformers makes of a GGUF file, as a folder made from the file would have it.

    Raises:
        CapabilityError: It makes none, or one of another model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    header = check_file(Path(options.model_name))
    try:
        config = AutoConfig.from_pretrained(**where)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CapabilityError(
            f"transformers {version('transformers')} makes no model of {options.model_name!r}, a GGUF file of the "
            f"architecture {header.architecture!r}: {' '.join(str(error).split())[:200]}; give a transformers folder "
            "of this model"
        ) from error
    if (scaling := header.rotary_scaling()) is not None and not _scales(config.get_text_config()):
        raise CapabilityError(
            f"{options.model_name!r} scales its rotary frequencies ({scaling}), which transformers leaves out when it "
            "reads a GGUF file; give a transformers folder of this model"
        )
    if isinstance(made := AutoModelForCausalLM._model_mapping.get(type(config), None), type):
        config.architectures = [made.__name__]
    return config


def tokenizer_of_gguf(where: dict[str, Any]) -> Any:
    """Return the tokenizer transformers makes of a GGUF file, as a folder made from the file would have it.

    It is saved and read again: the class of a tokenizer adds what it knows of its models when it reads a folder, such
    as the normal form of Unicode of Qwen2, and not when it reads a GGUF file.
    """
    from transformers import AutoTokenizer

    folder = Path(where["pretrained_model_name_or_path"]) / "tokenizer"
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=where["trust_remote_code"])


def how_to_unpack(where: dict[str, Any]) -> dict[str, Any]:
    """Return further arguments for weights: those of a GGUF file are unpacked, however transformers likes to keep them.

    Packed ones are no tensors that a rollout, an alignment or a fingerprint could read.
    """
    import transformers

    packing = getattr(transformers, "GgufConfig", None)  # versions that have none always unpack
    if "gguf_file" not in where or packing is None:
        return {}
    return {"quantization_config": packing(dequantize=True)}


def forget_packing(causal: Any) -> None:
    """Take from a model what says that its weights came out of a GGUF file; they are ordinary ones now.

    Raises:
        ConfigError: They are not.
    """
    if any(not parameter.is_floating_point() for parameter in causal.parameters()):
        raise ConfigError("transformers kept the weights of this GGUF file packed; give a transformers folder of it")
    if hasattr(causal.config, "quantization_config"):
        del causal.config.quantization_config


@contextmanager
def _bar_as_told() -> Iterator[None]:
    """Turn off the bar of transformers' reader of GGUF files where its other bars are off; it asks nobody."""
    from transformers.utils import logging

    # Not as an attribute of transformers, whose module makes its attributes up and may not know this one.
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if bar is None or logging.is_progress_bar_enabled():
        yield
        return
    reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        reader.tqdm = bar


def _scales(text: Any) -> bool:
    """Whether any of the rotary embeddings of a configuration is more than plain."""
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [each for each in (parameters, *parameters.values()) if isinstance(each, dict)]
    return any(kind.get("rope_type", "default") != "default" for kind in kinds)
