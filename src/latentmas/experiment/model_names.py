"""What ``--model_name`` may mean, and what is wrong where it means nothing that can be loaded.

Only names and files are looked at: no weights, no torch, no network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from latentmas.backends import gguf_file
from latentmas.errors import ConfigError, UnknownNameError
from latentmas.experiment.models import EMBEDDED, SCRIPTED

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")
_ADAPTER: Final = "adapter_config.json"
_TOKENIZER: Final = re.compile(r"token|vocab|spiece|sentencepiece|\.model$|\.tiktoken$|tekken|\.py$", re.IGNORECASE)
"""Files that may be (a part of) a tokenizer; code may bring one of its own."""
_HUB: Final = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)", re.IGNORECASE)


def check_model_name(model_name: str) -> None:
    """Refuse what is neither a model folder nor a GGUF file nor a hub id.

    Raises:
        ConfigError: It is not; says what it is, and what to give instead.
        CapabilityError: It is a GGUF file that cannot be loaded here.
    """
    path = Path(model_name)
    if model_name in (EMBEDDED, SCRIPTED):
        return
    if (path / "config.json").is_file():
        _check_folder(path)
    elif gguf_file.is_gguf(model_name):
        gguf_file.check_file(path)
    elif path.is_dir():
        raise ConfigError(_no_config(path))
    elif path.exists():
        raise ConfigError(
            f"{model_name!r} is a file, and a model is a folder or a .gguf file; give the folder: --model_name "
            f"{path.parent}"
        )
    else:
        _check_hub_id(model_name)


def check_weights(model_name: str) -> None:
    """Refuse a folder that holds a configuration and no weights.

    Raises:
        ConfigError: It does.
    """
    path = Path(model_name)
    if not path.is_dir() or any(file.name.endswith(_WEIGHTS) and not _of_adapter(file) for file in path.iterdir()):
        return
    if any(file.name.endswith(".index.json") for file in path.iterdir()):
        return  # which files there should be is for transformers to say
    raise ConfigError(
        f"the model folder {model_name!r} holds no weights, no file that ends in .safetensors or .bin; get the whole "
        "model"
    )


def _check_folder(path: Path) -> None:
    """Refuse an adapter, and a folder without a tokenizer."""
    names = [file.name for file in path.iterdir()]
    if _ADAPTER in names and not any(name.endswith(_WEIGHTS) and not name.startswith("adapter") for name in names):
        raise ConfigError(_is_adapter(path))
    if not any(_TOKENIZER.search(name) for name in names):
        raise ConfigError(
            f"the model folder {str(path)!r} has no tokenizer, neither tokenizer.json nor tokenizer.model nor "
            "vocab.json; copy the tokenizer files of the model it was made from into it"
        )


def _of_adapter(file: Path) -> bool:
    return file.name.startswith("adapter_")


def _no_config(path: Path) -> str:
    if (path / _ADAPTER).is_file():
        return _is_adapter(path)
    if files := sorted(each for each in path.iterdir() if gguf_file.is_gguf(each.name)):
        return (
            f"{str(path)!r} has no config.json, but {len(files)} GGUF file{'s' * (len(files) > 1)}; give the file "
            f"itself: --model_name {files[0]}"
        )
    inside = [each for each in sorted(path.iterdir()) if (each / "config.json").is_file()]
    hint = f"; did you mean {str(inside[0])!r}?" if inside else ""
    return f"{str(path)!r} has no config.json; expected a transformers model folder or a .gguf file{hint}"


def _is_adapter(path: Path) -> str:
    try:
        base = json.loads((path / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = None
    of = f"of {base}" if isinstance(base, str) and base else f"of a model that its {_ADAPTER} does not name"
    name = base if isinstance(base, str) and base else "BASE_MODEL"
    return (
        f"{str(path)!r} is an adapter (LoRA) {of}, and not a model of its own; merge the two with the package peft and "
        f"give the new folder: AutoPeftModelForCausalLM.from_pretrained({str(path)!r}).merge_and_unload()"
        f".save_pretrained('MERGED'), and the tokenizer of {name} with it"
    )


def _check_hub_id(model_name: str) -> None:
    for known in (EMBEDDED, SCRIPTED):
        if model_name.strip().casefold() == known:
            raise UnknownNameError("model", model_name, [known])
    if (address := _HUB.match(model_name)) is not None:
        raise ConfigError(f"{model_name!r} is an address; give the hub id in it: --model_name {address[1]}")
    owner, slash, name = model_name.partition("/")
    if not slash or not owner.strip(".~") or "/" in name or not name:
        raise ConfigError(
            f"there is no model folder {model_name!r}; give a local folder, a .gguf file, a hub id such as "
            f"Qwen/Qwen3-4B, or {EMBEDDED!r} for the embedded model"
        )
