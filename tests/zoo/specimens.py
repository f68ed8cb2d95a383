"""Every model type of the installed transformers as a tiny random model in a folder, with a tokenizer.

A configuration class says by its defaults which fields there are; every field that is a size gets a small value, every
list by layer gets each kind it has, and what is left stays as the type has it. A few types need a word more, and a few
get several specimens, because one field changes what the model does (windows, scaled RoPE, layers without RoPE).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

VOCABULARY: Final = 410
"""Rows of the embedding; the tokenizer has fewer tokens, as many real models have."""
TOKENS: Final = 400
WINDOW: Final = 24
CONTEXT: Final = 1024
START, END, PAD = 0, 2, 3

_SIZES: Final[Mapping[str, object]] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_dim", "emb_dim", "word_embed_proj_dim", "embedding_size",
         "input_embedding_size", "output_embedding_size", "lru_width", "attention_hidden_size", "mm_hidden_size",
         "projection_dim", "embed_dim", "vision_output_dim", "out_hidden_size", "output_dim", "proj_hidden_size"),
        64,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "moe_intermediate_size", "dim_ff", "dff",
         "shared_expert_intermediate_size", "shared_experts_intermediate_size", "shared_intermediate_size", "d_inner",
         "prefix_dense_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size",
         "moe_shared_expert_intermediate_size", "feed_forward_size", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim",
         "ffn_intermediate_size", "vision_intermediate_size"),
        96,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth",
         "num_encoder_layers", "num_decoder_layers", "num_blocks", "num_layers_per_stack"),
        4,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "num_encoder_attention_heads", "num_decoder_attention_heads", "attention_heads", "num_linear_attention_heads",
         "swa_num_attention_heads"),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "global_head_dim", "kv_channels", "d_kv"), 32),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "dim_head", "d_head"), 16),
    "rotary_dim": 8,
    "qk_head_dim": 32,
    "kv_lora_rank": 24,
    "q_lora_rank": 28,
    "max_position_embeddings": CONTEXT,
    **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len", "context_length", "max_target_positions"), CONTEXT),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "attention_chunk_size",
         "local_attention"),
        WINDOW,
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts", "moe_n_experts"),
        4,
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "zero_expert_num"), 1),
    "moe_layer_end_index": 3,
    "num_nextn_predict_layers": 0,
    "layers_per_block": 1,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "index_n_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 8),
    "mamba_d_ssm": 128,
    "query_pre_attn_scalar": 24,
    "image_size": 28,
    "patch_size": 14,
    "num_labels": 2,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "is_decoder": True,
}  # fmt: skip
_BY_LAYER: Final = (
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "layers_block_type",
    "indexer_types",
    "no_rope_layer_ids",
)
_ALSO_NONE: Final = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "head_dim", "num_key_value_heads", "num_experts_per_tok"}
)
"""Filled in also where a type leaves them open."""
_LAYERS: Final = 4
_NOT_TEXT: Final = ("vision", "audio", "image", "speech", "encoder_config", "vq", "vit")


@dataclass(frozen=True, slots=True)
class Specimen:
    """A kind of model to build.

    Attributes:
        model_type: As transformers calls it.
        variant: What is special about this one; empty where the type has one specimen.
        changes: Fields of the (text) configuration, over what the sizes say.
    """

    model_type: str
    variant: str = ""
    changes: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model_type} ({self.variant})" if self.variant else self.model_type


def tokenizer() -> Any:
    """Return a byte-level tokenizer of `TOKENS` tokens with a chat template, special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<|turn|>", "<|end|>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*special, *letters]
    pairs = [(first, second) for first in "etaoinshrdlu" for second in "etaoinshrdlu"]
    merges = pairs[: TOKENS - len(pieces)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    bytes_first = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bytes_first.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_first.decoder = decoders.ByteLevel()
    bytes_first.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytes_first, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>"
    )
    fast.chat_template = (
        "{% for message in messages %}<|turn|>{{ message.role }}: {{ message.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
    )
    return fast


@cache
def causal_types() -> tuple[str, ...]:
    """Return every model type that transformers has a causal language model for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def other_types() -> list[str]:
    """Return every model type that transformers writes text with, but not as a causal language model."""
    from transformers.models.auto import modeling_auto

    names = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    names |= set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    names |= set(modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    return sorted(names - set(causal_types()))


def small(config: Any, changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments that make a configuration of this kind tiny; `changes` go to the part that reads text."""
    inner = set(getattr(config, "sub_configs", {}))
    given = config.to_dict()
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        if name in inner and (part := getattr(config, name)) is not None and hasattr(part, "to_dict"):
            is_text = not any(word in name for word in _NOT_TEXT)
            arguments[name] = small(part, changes if is_text else {})
        elif name in _BY_LAYER and isinstance(value, list) and value:
            kinds = list(dict.fromkeys(value))
            arguments[name] = [kinds[place % len(kinds)] for place in range(_LAYERS)]
        elif name == "head_dim" and given.get("qk_rope_head_dim") is not None:
            arguments[name] = _SIZES["qk_rope_head_dim"]
        elif name == "num_key_value_heads" and given.get("kv_lora_rank") is not None:
            arguments[name] = _SIZES["num_attention_heads"]  # latent attention shares no heads
        elif name in _SIZES and not isinstance(value, dict) and (value is not None or name in _ALSO_NONE):
            arguments[name] = _SIZES[name]
        elif name in {"attention_bias", "mlp_bias", "use_qkv_bias", "add_qkv_bias"}:
            arguments[name] = True
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            arguments[name] = VOCABULARY - 1 - len(name) % 7
        elif name == "tie_word_embeddings":
            arguments[name] = value
    if "sliding_window" not in arguments and "sliding_attention" in (arguments.get("layer_types") or ()):
        arguments["sliding_window"] = WINDOW
    if not any(name in inner for name in arguments) or "text_config" not in arguments:
        arguments |= changes
    return arguments


def configuration(specimen: Specimen) -> Any:
    """Return the tiny configuration of a specimen."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[specimen.model_type]
    changes = {**_WORDS_MORE.get(specimen.model_type, {}), **specimen.changes}
    return kind(**small(default(specimen.model_type), changes))


def default(model_type: str) -> Any:
    """Return the configuration of a type as it comes."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**_STARTS.get(model_type, {}))


_STARTS: Final[dict[str, dict[str, object]]] = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}
}
"""Types whose defaults do not stand by themselves."""
_FULL4: Final = ["full_attention"] * 4
_MULTIPLIED: Final[dict[str, object]] = {
    "embedding_multiplier": 2.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.8,
    "attention_multiplier": 0.4,
}
_WORDS_MORE: Final[dict[str, dict[str, object]]] = {
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"), _MULTIPLIED
    ),
    "apertus": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0,
                                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 128}},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {**_MULTIPLIED, "layer_types": ["linear_attention", "full_attention"] * 2},
    "helium": {"head_dim": 16},
    "hrm_text": {"num_hidden_layers": 4, "num_layers_per_stack": None, "H_cycles": 2, "L_cycles": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "blt": {"encoder_hash_byte_group_vocab": 32, "encoder_hash_byte_group_size": [3, 4]},
    "cohere": {"logit_scale": 0.3, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.3},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [6, 5, 5]},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
    "dots1": {"num_local_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"laurel_rank": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hyperclovax": _MULTIPLIED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen4_exp": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 32,
                  "indexer_compress_ratio": 4},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 32,
                       "indexer_compress_ratio": 4},
    "reformer": {"axial_pos_embds": False},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def build(specimen: Specimen, folder: Path | str) -> Any:
    """Write a specimen to a folder; return the auto class that reads it.

    Weights are wide, so that attention is uneven and positions matter; norms and biases are uneven too.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    config = configuration(specimen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(specimen.name.encode()))
        for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
            if type(config) in auto._model_mapping:
                model = auto.from_config(config)
                break
        else:
            raise LookupError(f"no model class for {specimen.model_type}")
        _widen(model)
    model.generation_config.eos_token_id = END
    model.generation_config.bos_token_id = START
    model.generation_config.pad_token_id = PAD
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return auto


@torch.no_grad()
def _widen(model: Any) -> None:
    """Make attention uneven: matrices get a gain above 1, vectors get noise, a token's embedding a size of 1."""
    embedding = model.get_input_embeddings()
    table = getattr(embedding, "weight", None)
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight is table or weight.numel() < 2:
            continue
        if weight.dim() >= 2 and min(weight.shape) > 1 and "norm" not in name:
            gain = 1.6 if any(word in name for word in ("q_proj", "k_proj", "qkv", "query", "key", "c_attn")) else 1.2
            weight.normal_(0, gain / weight.shape[-1] ** 0.5)
        elif "log" not in name and "dt" not in name:
            weight.mul_(1.2 if any(word in name for word in ("q_norm", "k_norm")) else 1.0)
            weight.add_(0.15 * torch.randn_like(weight))
    if table is not None:
        size = embedding(torch.arange(4, min(200, table.shape[0]))).float().std()
        table.normal_(0, float(table.float().std() / size.clamp_min(1e-6)))


@cache
def specimens() -> tuple[Specimen, ...]:
    """Return every specimen there is, causal language models first."""
    plain = [Specimen(kind) for kind in causal_types()]
    return (*plain, *_VARIANTS, *(Specimen(kind) for kind in other_types()))


def _rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


_LONG: Final = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 40,
    "rope_parameters": _rope(
        "longrope",
        short_factor=[1.0 + place / 8 for place in range(8)],
        long_factor=[2.0 + place for place in range(8)],
        original_max_position_embeddings=40,
        factor=8.0,
        partial_rotary_factor=1.0,
    ),
}
_LONG_SCALED: Final = {
    **_LONG,
    "rope_parameters": {**_LONG["rope_parameters"], "short_mscale": 1.1, "long_mscale": 1.2},  # type: ignore[dict-item]
}
_WINDOWED: Final = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "layer_types": None}
_UNUSED: Final = {"use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 2, "layer_types": None}
_VARIANTS: Final[tuple[Specimen, ...]] = (
    Specimen("llama", "a window nobody reads", {"sliding_window": WINDOW}),
    Specimen("llama", "tied", {"tie_word_embeddings": True}),
    Specimen("llama", "linear RoPE", {"rope_parameters": _rope("linear", factor=4.0)}),
    Specimen("llama", "dynamic RoPE", {"rope_parameters": _rope("dynamic", factor=8.0)}),
    Specimen("llama", "YaRN", {"rope_parameters": _rope("yarn", factor=8.0, original_max_position_embeddings=128)}),
    Specimen("llama", "llama3 RoPE", {"rope_parameters": _rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)}),
    Specimen("llama", "longrope", {**_LONG, "head_dim": 16}),
    Specimen("phi3", "longrope", _LONG),
    Specimen("phi3", "windows", {"sliding_window": WINDOW}),
    Specimen("phimoe", "longrope", _LONG_SCALED),
    *(Specimen(kind, "windows", _WINDOWED) for kind in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")),
    *(Specimen(kind, "windows switched off", _UNUSED) for kind in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")),
    *(Specimen(kind, "no window", {"sliding_window": None}) for kind in ("mistral", "mixtral", "starcoder2")),
    Specimen("mistral", "windows", {"sliding_window": WINDOW}),
    Specimen("mixtral", "windows", {"sliding_window": WINDOW}),
    Specimen("smollm3", "windows", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": None}),
    Specimen("exaone4", "no window", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    Specimen("granite_swa", "RoPE in some layers", {"layer_rope_theta": [10000.0, 0.0, 500000.0, 1000.0]}),
    Specimen("granitemoehybrid", "attention only", {"layer_types": ["full_attention"] * 4, **_MULTIPLIED}),
    Specimen("granitemoehybrid", "attention only, RoPE", {"layer_types": ["full_attention"] * 4, **_MULTIPLIED,
                                                         "position_embedding_type": "rope"}),
    Specimen("lfm2", "convolutions", {"layer_types": ["conv", "full_attention"] * 2}),
    Specimen("llama4_text", "long chunks", {"attention_chunk_size": 8192}),
    Specimen("llama4_text", "temperature tuning that shows", {"attention_chunk_size": 8192, "floor_scale": 8}),
    Specimen("gemma4_text", "no embeddings by layer", {"hidden_size_per_layer_input": 0}),
    Specimen("gemma4_text", "shared keys", {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2}),
    Specimen("gemma4_text", "keys are values", {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True}),
    Specimen("gemma2", "tied", {"tie_word_embeddings": True}),
    Specimen("gemma3_text", "linear RoPE", {"rope_parameters": {
        "full_attention": _rope("linear", factor=8.0),
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}}),
    Specimen("olmo3", "YaRN", {"rope_parameters": _rope("yarn", factor=8.0, original_max_position_embeddings=128)}),
    Specimen("deepseek_v3", "queries at full rank", {"q_lora_rank": None}),
    Specimen("deepseek_v3", "YaRN", {"rope_parameters": _rope(
        "yarn", factor=8.0, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=128)}),
    Specimen("falcon", "alibi", {"alibi": True}),
    Specimen("falcon", "new decoder", {"new_decoder_architecture": True}),
    Specimen("stablelm", "query and key norms", {"qk_layernorm": True, "use_parallel_residual": True}),
    Specimen("phi", "query and key norms", {"qk_layernorm": True}),
    Specimen("gptj", "all of the head turns", {"rotary_dim": 16}),
    Specimen("ministral3", "queries scaled by position", {"rope_parameters": _rope(
        "yarn", factor=8.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.3)}),
)  # fmt: skip
