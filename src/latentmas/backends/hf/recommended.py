"""What a model folder recommends for sampling, in its ``generation_config.json``; reads no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from latentmas.backends.hf.options import LoadOptions
from latentmas.errors import ConfigError

NAME: Final = "generation_config.json"
SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What is looked for, under the names of options and of transformers alike."""


def recommended_sampling(options: LoadOptions) -> Mapping[str, float | int]:
    """Return the values that a model recommends; a name it says nothing about is not there.

    What `generate` of transformers falls back on where nobody says anything (a top-k of 50) is no recommendation. The
    file is read as it stands: transformers leaves out, or warns of, what it finds odd.

    Raises:
        ConfigError: The file is no JSON object, or a value in it is no number.
    """
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(options.model_name, NAME, revision=options.revision)
    except OSError:  # models may come without one
        return {}
    assert path is not None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{NAME} of {options.model_name!r} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{NAME} of {options.model_name!r} holds {type(content).__name__}; expected an object")
    found = {name: content[name] for name in SAMPLING if content.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{NAME} of {options.model_name!r} recommends {name} {value!r}; expected a number")
    return found
