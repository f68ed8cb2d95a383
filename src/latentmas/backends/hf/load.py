"""From a name to a model that is known to be right: names, configuration, weights, and what is refused.

Checks come in the order of their price: the configuration (no weights), then the weights. At last `verify` runs small
forward passes that compare the backend's way of running this architecture with the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from latentmas.alignment import EmbeddingSpace
from latentmas.backends.fingerprint import describe_weight, digest
from latentmas.backends.gguf_file import is_gguf
from latentmas.backends.hf import architecture, longrope
from latentmas.backends.hf.options import LoadOptions
from latentmas.backends.hf.source import config_of_gguf, forget_packing, how_to_unpack, located, tokenizer_of_gguf
from latentmas.backends.hf.template import turn_end_tokens
from latentmas.errors import CapabilityError, ConfigError, LatentMASError, SampleError
from latentmas.filters._trial import MemoryShape
from latentmas.rope import Rope


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what the rollout needs to know of it.

    Attributes:
        causal: The transformers model, in eval mode.
        windows: Sliding window of each attention type; one entry ``None`` for models with a single mask.
        context: Positions the model was made for; None where its configuration does not say.
        stop_tokens: Every end-of-text id of the generation configuration, the configuration and the tokenizer, and what
            ends the model's own turns in its chat template.
        ropes: How each layer rotates its keys; None where that is not known, so that they cannot be moved.
        unmovable: Why `ropes` is None, as a sentence; empty where it is not.
        switch: The longest length of longrope's short factors; None for other models.
        divides: Logits are divided by the ``logits_scaling`` of the configuration (Granite); HyperCLOVA X multiplies.
        fingerprint: 64 hexadecimal digits over configuration, dtype and every weight; the device does not change it.
        lock: Held during a forward pass. What one pass changes in the model - the attention function while somebody
            watches, the frequencies of longrope - must not reach another thread's.
    """

    causal: Any
    windows: dict[str | None, int | None]
    context: int | None
    stop_tokens: frozenset[int]
    fingerprint: str
    attention: str
    ropes: tuple[Rope, ...] | None = None
    unmovable: str = "nobody looked how its layers rotate keys"
    switch: int | None = None
    divides: bool = True
    lock: RLock = field(default_factory=RLock, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """Its model type, for errors."""
        return architecture.model_type(self.causal.config)

    @property
    def decoder(self) -> Any:
        """What makes hidden states of vectors, without the head."""
        found = self.causal.get_decoder()
        # ModernBERT calls its head a decoder.
        takes_vectors = "inputs_embeds" in inspect.signature(found.forward).parameters
        return found if takes_vectors else self.causal.base_model

    @property
    def layers(self) -> int:
        return int(self.causal.config.get_text_config().num_hidden_layers)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding; token ids are smaller."""
        return int(self.causal.get_input_embeddings().weight.shape[0])

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """Refuse tokens that this model does not know.

        Raises:
            SampleError: There is one; names it.
        """
        known = range(self.vocabulary)
        if unknown := [token for token in tokens if token not in known]:
            raise SampleError(
                f"the prompt has token {unknown[0]}, the model knows 0 to {known[-1]}; "
                "the tokenizer belongs to another model"
            )

    @property
    def dtype(self) -> torch.dtype:
        return self.causal.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where token ids and thoughts enter."""
        return self.causal.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``[B, V]`` logits of ``[B, E]`` hidden states, with the scaling some architectures add."""
        config = self.causal.config.get_text_config()
        head = self.causal.get_output_embeddings()
        hidden = hidden.to(head.weight.device)
        if type(head) is torch.nn.Linear and head.bias is None and _is_narrow(hidden):
            pair = hidden if hidden.shape[0] > 1 else hidden.repeat(2, 1)
            logits: Tensor = (head.weight @ pair.T).T[: hidden.shape[0]]
        else:
            with self.lock:
                logits = head(hidden)
        if (scaling := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / scaling if self.divides else logits * scaling
        if (factor := getattr(config, "logit_scale", None)) is not None:
            logits = logits * factor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def space(self, tokens: int | None = None) -> EmbeddingSpace:
        """Return what alignments need to know.

        Args:
            tokens: Length of the tokenizer, where it is known: ids from there on are padding of the embedding.
        """
        embedding, head = self.causal.get_input_embeddings(), self.causal.get_output_embeddings()
        return EmbeddingSpace(
            embed=lambda ids: embedding(ids.to(embedding.weight.device)).detach(),
            head=head.weight.detach(),
            logits=self.logits,
            vocabulary=self.vocabulary if tokens is None else min(tokens, self.vocabulary),
            tied=head.weight.data_ptr() == embedding.weight.data_ptr(),
            compute=torch.float64 if self.dtype == torch.float64 else torch.float32,
        )


def _is_narrow(hidden: Tensor) -> bool:
    """Whether a tall matrix is better on the left: on a CPU, ``hidden @ weight.T`` of up to 8 rows takes MKL longer.

    A single row takes longer than two, so it goes twice.
    """
    return hidden.device.type == "cpu" and hidden.shape[0] <= 8


def load_config(options: LoadOptions) -> Any:
    """Return the checked transformers configuration; reads no weights.

    Raises:
        ConfigError: There is no such model.
        CapabilityError: This architecture cannot be run exactly; says why.
    """
    from transformers import AutoConfig

    with _loading(options.model_name), located(options) as where:
        config = config_of_gguf(options, where) if "gguf_file" in where else AutoConfig.from_pretrained(**where)
    architecture.check(config)
    architecture.check_attention(config, options.attn_implementation)
    return config


def memory_shape(options: LoadOptions) -> tuple[MemoryShape, bool]:
    """Return the shape of a model's memory, and whether some layers look back a limited way only; reads no weights.

    Layers that differ from each other count as the usual one.
    """
    text = load_config(options).get_text_config()
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    shape = MemoryShape(
        layers=int(text.num_hidden_layers),
        heads=int(getattr(text, "num_key_value_heads", None) or heads),
        width=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        hidden=int(text.hidden_size),
    )
    return shape, any(width is not None for width in architecture.windows(text).values())


def check_handovers(options: LoadOptions, *, turns: bool, fine: str | None, published: bool) -> None:
    """Refuse hand-overs that this model cannot do, by its configuration alone; reads no weights.

    Args:
        turns: Keys are moved to other positions.
        fine: Slots are chosen for each layer or head, and this is how to choose them for all at once; else None.
        published: New positions count slots.

    Raises:
        CapabilityError: It cannot; says what it can.
    """
    config = load_config(options)
    text, kind = config.get_text_config(), architecture.model_type(config)
    if turns and (rope := architecture.length_dependent(text)) is not None:
        raise CapabilityError(
            f"{kind} has rotary positions of type {rope!r}, whose frequencies depend on length, so that keys cannot be "
            "moved to other positions; use --positions true and --topology chain"
        )
    windowed = any(width is not None for width in architecture.windows(text).values())
    if windowed and fine is not None:
        raise CapabilityError(f"{kind} has sliding windows, whose masks need one set of slots for all layers; {fine}")
    if windowed and published:
        raise CapabilityError(
            f"{kind} has sliding windows, and --positions published gives slots positions that no window can be told "
            "from; use --positions true or rerotate"
        )


def load_tokenizer(options: LoadOptions) -> Any:
    """Return the tokenizer of a model.

    Raises:
        ConfigError: It cannot be loaded, or it turns text into nothing.
    """
    from transformers import AutoTokenizer

    with _loading(options.model_name), located(options) as where:
        tokenizer = tokenizer_of_gguf(where) if "gguf_file" in where else AutoTokenizer.from_pretrained(**where)
        ids = tokenizer("one two 3", add_special_tokens=False).input_ids
    if not ids:
        raise ConfigError(
            f"the tokenizer of {options.model_name!r} turns text into no tokens; is its tokenizer.json missing?"
        )
    return tokenizer


def load_stop_tokens(options: LoadOptions, config: Any, tokenizer: Any) -> frozenset[int]:
    """Return every end-of-text id, as `LoadedModel.stop_tokens` has them; reads no weights."""
    from transformers import GenerationConfig

    if is_gguf(options.model_name):
        return _stop_tokens(GenerationConfig.from_model_config(config), config.get_text_config(), tokenizer)
    try:
        generation = GenerationConfig.from_pretrained(options.model_name, revision=options.revision or "main")
    except OSError:  # models may come without one; transformers then takes what the configuration says
        generation = GenerationConfig.from_model_config(config)
    return _stop_tokens(generation, config.get_text_config(), tokenizer)


def load_model(options: LoadOptions, tokenizer: Any) -> LoadedModel:
    """Load the weights and check that the backend runs this architecture exactly as the model itself does.

    Raises:
        CapabilityError: It does not.
        ConfigError: The weights cannot be loaded, or are not all there.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(options)
    device, dtype = options.resolved_device(), options.resolved_dtype(config)
    attention = architecture.check_attention(config, options.attn_implementation)
    with _loading(options.model_name), located(options) as where:
        loader: Any = AutoModelForCausalLM
        causal, loaded = loader.from_pretrained(
            **where,
            **how_to_unpack(where),
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=options.device_map,
            output_loading_info=True,
        )
        if "gguf_file" in where:
            forget_packing(causal)
        causal.eval().requires_grad_(False)
        if options.device_map is None:
            causal.to(device)
    # transformers fills what is missing with random numbers and warns; a run on those would mean nothing.
    if missing := sorted({str(name) for kind in ("missing_keys", "mismatched_keys") for name in loaded[kind]}):
        raise ConfigError(
            f"the weights of {options.model_name!r} lack {len(missing)} tensors that its configuration asks for, "
            f"the first is {missing[0]}; get the whole model"
        )
    if (name := _not_a_number(causal)) is not None:
        raise ConfigError(
            f"the weights of {options.model_name!r} are no numbers: {name} holds NaN as {dtype}; get the model again, "
            "or give another --dtype"
        )
    return describe_model(causal, tokenizer, attention or causal.config._attn_implementation)


def _not_a_number(causal: Any) -> str | None:
    """Return the name of a weight with NaN in it; an expert that is seldom asked would break single samples."""
    for name, weight in causal.named_parameters():
        # A sum is fast, and without NaN nothing but infinities makes one; so few are looked at closely.
        if weight.is_floating_point() and not weight.is_meta and weight.element_size() > 1:
            suspect = bool(weight.sum(dtype=torch.float32).isnan())
            if suspect and bool(weight.isnan().any()):
                return str(name)
    return None


def describe_model(causal: Any, tokenizer: Any, attention: str = "sdpa") -> LoadedModel:
    """Return a `LoadedModel` for a transformers model that is already in memory."""
    text = causal.config.get_text_config()
    if causal.get_input_embeddings().weight.dtype == torch.float64 and has_experts(causal):
        causal.set_experts_implementation("eager")  # the grouped product of torch has no float64
    if (switch := architecture.switch(text)) is not None:
        for module in causal.get_decoder().modules():
            if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
                longrope.choose_by_row(module)
    return LoadedModel(
        causal=causal,
        windows=architecture.windows(text),
        context=architecture.context(text),
        stop_tokens=_stop_tokens(causal.generation_config, text, tokenizer),
        fingerprint=fingerprint(causal),
        attention=attention,
        switch=switch,
    )


def has_experts(causal: Any) -> bool:
    """Return whether a model is a mixture of experts."""
    return bool(getattr(causal, "_can_set_experts_implementation", lambda: False)())


def fingerprint(causal: Any) -> str:
    """Return 64 hexadecimal digits over the shape of the model, its dtype and every bit of every weight."""
    weights = (describe_weight(name, weight) for name, weight in causal.named_parameters())
    return digest(causal.config.get_text_config().to_dict(), weights)


@contextmanager
def _loading(model_name: str) -> Iterator[None]:
    """Turn whatever a broken model folder makes transformers raise into one sentence.

    Broad on purpose: configuration, tokenizer and weights are files of strangers, read by code of strangers.
    """
    try:
        yield
    except LatentMASError:
        raise
    except Exception as error:
        raise ConfigError(_unreachable(model_name, error)) from error


def _stop_tokens(generation: Any, text: Any, tokenizer: Any) -> frozenset[int]:
    of_tokenizer = tokenizer.eos_token_id if tokenizer is not None else None
    # A base model trained further on chats may keep its old end of text, which nobody taught it to write.
    ids = _ids(generation.eos_token_id, text.eos_token_id, of_tokenizer, turn_end_tokens(tokenizer))
    return frozenset(ids)


def _ids(*groups: int | Iterable[int] | None) -> Iterable[int]:
    for group in groups:
        if isinstance(group, int):
            yield group
        elif group is not None:
            yield from group


def _unreachable(name: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    # A hub id may be misspelt, of a model one has to ask for, or out of reach.
    way = "" if Path(name).exists() else "; check the name and the network, or give a local folder"
    return f"the model {name!r} cannot be loaded: {reason[:300]}{way}"
