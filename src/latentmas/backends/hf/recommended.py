"""What a model folder recommends for sampling, in its ``generation_config.json``; reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentmas.backends.hf.load import LoadOptions

SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What is looked for, under the names of options and of transformers alike."""


def recommended_sampling(options: LoadOptions) -> Mapping[str, float | int]:
    """Return the values that a model recommends; a name it says nothing about is not there.

    What `generate` of transformers falls back on where nobody says anything (a top-k of 50) is no recommendation.
    """
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(options.model_name, revision=options.revision or "main")
    except OSError:  # models may come without one
        return {}
    found = {name: getattr(generation, name, None) for name in SAMPLING}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
