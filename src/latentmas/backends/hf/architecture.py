"""What a configuration alone says about an architecture: is it let in, with which attention, windows and context.

Reads no weights. What a configuration cannot tell, `verify` finds out on the model itself. A refusal names the model
type that stands in the user's folder, and the true reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from latentmas.errors import CapabilityError

PLAIN_ROPES: Final = frozenset({"default", "proportional", "linear", "llama3", "yarn"})
"""RoPE types whose frequencies do not depend on length, so that keys can be rotated."""
LONG_ROPES: Final = frozenset({"longrope", "dynamic"})
"""RoPE types whose frequencies do."""
EXTENDS: Final = frozenset({"yarn", "linear"})
"""RoPE types whose context is their factor times the original one."""
WINDOW_FIELDS: Final = ("sliding_window", "sliding_window_size")
"""Where configurations say how wide a sliding window is."""

_NO_WINDOWS: Final = frozenset(
    {
        "max_window_layers",
        "use_sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "prefix_dense_sliding_window_pattern",
    }
)
"""Fields with a window in their name that say nothing `WINDOW_FIELDS` and the layer types do not say."""
_STATES: Final = ("linear", "mamba", "conv", "recurrent", "ssm", "delta")
"""Words in the names of layer types that are no attention."""
_SPARSE_FIELDS: Final = ("index_topk",)
"""Fields that let a layer look at some of the slots only, once there are more than so many."""


def model_type(config: Any) -> str:
    """Return the type in the user's folder, and that of the text model inside where it is another one."""
    outer, inner = str(config.model_type), str(config.get_text_config().model_type)
    return outer if inner in (outer, f"{outer}_text") else f"{outer} (text model: {inner})"


def check(config: Any) -> None:
    """Refuse an architecture that cannot be run exactly, whatever its weights are.

    Raises:
        CapabilityError: Says why.
    """
    kind = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise CapabilityError(
            f"{kind} is no causal language model but an encoder with a decoder; use a decoder-only model"
        )
    if not _is_causal(config):
        raise CapabilityError(_no_language_model(config))
    text = config.get_text_config()
    kind = model_type(config)
    if other := sorted(set(_layer_types(text)) - {"full_attention", "sliding_attention"}):
        states = any(word in name for name in other for word in _STATES)
        reason = (
            "which keep a state in place of keys and values" if states else "whose masks and caches are not built here"
        )
        raise CapabilityError(
            f"{kind} has layers of type {', '.join(other)}, {reason}; use a model with full or sliding "
            "attention in every layer"
        )
    if getattr(text, "hidden_size_per_layer_input", None):
        raise CapabilityError(
            f"{kind} adds an embedding of the token's number in every layer (hidden_size_per_layer_input is "
            f"{text.hidden_size_per_layer_input}), and a latent thought has no such number; use another model"
        )
    if getattr(text, "num_kv_shared_layers", None):
        raise CapabilityError(
            f"{kind} has {text.num_kv_shared_layers} layers that keep no keys and values of their own "
            "(num_kv_shared_layers); use another model"
        )
    if getattr(text, "alibi", False) or kind in ("bloom", "mpt"):
        raise CapabilityError(f"{kind} has no rotary position embedding but ALiBi; use a model with RoPE")
    if not _rotates(text):
        raise CapabilityError(f"{kind} has no rotary position embedding; use a model with RoPE")
    for name, width in _unknown_windows(text):
        raise CapabilityError(
            f"{kind} has {name} = {width}, a kind of local or sparse attention that is not built here; "
            "use a model without it"
        )


def check_attention(config: Any, wanted: str) -> str | None:
    """Return the attention implementation to load a model with; None lets transformers choose.

    Args:
        wanted: ``auto`` is sdpa where the model's class has it, else eager.

    Raises:
        CapabilityError: The model has no sdpa.
    """
    has_sdpa = _has_sdpa(config)
    if wanted == "auto":
        return None if has_sdpa is None else "sdpa" if has_sdpa else "eager"
    if wanted == "sdpa" and has_sdpa is False:
        reason = "caps its attention scores" if _caps_scores(config) else "has an attention of its own"
        raise CapabilityError(
            f"{model_type(config)} {reason}, which sdpa cannot do; use --attn_implementation eager or auto"
        )
    return wanted


def windows(text: Any) -> dict[str | None, int | None]:
    """Return the sliding window of each attention type as the configuration says; ``None`` is the type of models with
    one mask for all layers."""
    width = next((getattr(text, field) for field in WINDOW_FIELDS if getattr(text, field, None)), None)
    types = _layer_types(text)
    if "sliding_attention" in types:
        return {"full_attention": None, "sliding_attention": width}
    return {None: None if "full_attention" in types else width}


def context(text: Any) -> int | None:
    """Return the positions a model was made for; None where its configuration does not say.

    A folder with YaRN or linear scaling has ``factor`` times its original length, whatever
    ``max_position_embeddings`` says: people add the scaling and leave that number (so does vLLM read it). Where layers
    have sets of their own (Gemma 3) nobody added one of them, and that number counts the scaling already.
    """
    stated = getattr(text, "max_position_embeddings", None)
    longest = stated if isinstance(stated, int) and stated > 0 else None
    sets = rope_parameters(text)
    for parameters in sets:
        kind, factor = rope_type(parameters), parameters.get("factor")
        if kind in EXTENDS and isinstance(factor, int | float) and longest is not None:
            original = parameters.get("original_max_position_embeddings") or (longest if len(sets) == 1 else 0)
            longest = max(longest, int(factor * original))
    return longest


def rope_parameters(text: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of each set of rotary frequencies: one, or one for each type of layer."""
    parameters = getattr(text, "rope_parameters", None)
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]


def rope_type(parameters: Mapping[str, Any]) -> str:
    """Return the type of a set of rotary frequencies."""
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def length_dependent(text: Any) -> str | None:
    """Return the RoPE type whose frequencies depend on length; None where there is none."""
    kinds = (rope_type(parameters) for parameters in rope_parameters(text))
    return next((kind for kind in kinds if kind not in PLAIN_ROPES), None)


def switch(text: Any) -> int | None:
    """Return the length above which longrope takes its other factors; None for other models."""
    for parameters in rope_parameters(text):
        if rope_type(parameters) == "longrope":
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            return int(original or text.max_position_embeddings)
    return None


def _layer_types(text: Any) -> Sequence[str]:
    return list(getattr(text, "layer_types", None) or [])


def _model_class(config: Any) -> Any:
    """Return the class that transformers has for this configuration; None where it comes with the model."""
    from transformers import AutoModelForCausalLM

    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _is_causal(config: Any) -> bool:
    return _model_class(config) is not None or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _no_language_model(config: Any) -> str:
    kind = str(config.model_type)
    sees = [word for word in ("vision", "audio", "speech") if getattr(config, f"{word}_config", None) is not None]
    inner = str(config.get_text_config().model_type)
    if sees or inner != kind:
        what = " and ".join({"vision": "images", "audio": "audio", "speech": "speech"}[word] for word in sees)
        return (
            f"{kind} is a model of text with {what or 'something else'}, and transformers has no causal language "
            f"model for the whole of it; use a checkpoint of a text model alone{_example(config)}"
        )
    return f"{kind} is no causal language model of transformers; use a decoder-only model"


def _example(config: Any) -> str:
    """Return the type of the text model inside, where such models are let in."""
    text = config.get_text_config()
    if text is config:  # Idefics is its own text model
        return ""
    try:
        check(text)
    except CapabilityError:
        return ""
    return f", such as a {text.model_type} model"


def _has_sdpa(config: Any) -> bool | None:
    found = _model_class(config)
    if found is None:
        return False if _caps_scores(config) else None
    return bool(found._supports_sdpa) and not _caps_scores(config)


def _caps_scores(config: Any) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _rotates(text: Any) -> bool:
    return bool(rope_parameters(text)) or bool(getattr(text, "rotary_dim", None))


def _unknown_windows(text: Any) -> Iterator[tuple[str, object]]:
    for name, value in text.to_dict().items():
        local = "window" in name or ("chunk" in name and "attention" in name)
        local = local and name not in (*WINDOW_FIELDS, *_NO_WINDOWS)
        if (local or name in _SPARSE_FIELDS) and isinstance(value, int) and value is not True and value > 0:
            yield name, value
