"""What is loaded and what is refused, and that refusing is cheap and by name."""

import dataclasses
import json

import pytest
import torch

from latentmas.backends.hf.load import LoadOptions, load_config, load_model, load_tokenizer
from latentmas.backends.hf.verify import verified
from latentmas.errors import CapabilityError, ConfigError


def options(folder, **changes):
    return LoadOptions(model_name=str(folder), **changes)


def configured(tmp_path, **fields):
    """A model folder that has a configuration and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return options(tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "gpt2"}, "gpt2 has no rotary position embedding"),
        ({"model_type": "t5"}, "t5 is no causal language model"),
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "qwen3_next"}, "linear_attention"),
    ],
)
def test_an_architecture_that_cannot_be_exact_is_refused_by_name_before_weights(tmp_path, fields, reason):
    with pytest.raises(CapabilityError, match=reason):
        load_config(configured(tmp_path, **fields))


def test_sdpa_is_refused_where_scores_are_capped(tmp_path):
    plain = configured(tmp_path, model_type="gemma2", attn_logit_softcapping=50.0)
    assert load_config(plain).model_type == "gemma2"
    with pytest.raises(CapabilityError, match="--attn_implementation eager"):
        load_config(dataclasses.replace(plain, attn_implementation="sdpa"))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(options(tmp_path))
    with pytest.raises(ConfigError, match="no model folder"):
        load_config(options(tmp_path / "nowhere"))


def test_flash_attention_is_refused_because_it_takes_no_mask_per_row(model_folder):
    with pytest.raises(CapabilityError, match="mask per row"):
        options(model_folder, attn_implementation="flash_attention_2")


def test_an_unknown_device_is_refused(model_folder):
    with pytest.raises(ConfigError, match="'warp'"):
        options(model_folder, device="warp").resolved_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_refused_where_there_is_none(model_folder):
    with pytest.raises(ConfigError, match="--device auto"):
        options(model_folder, device="cuda").resolved_device()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_model_loads_in_every_dtype_with_one_fingerprint(model_folder, dtype):
    tokenizer = load_tokenizer(options(model_folder))
    model = verified(load_model(options(model_folder, dtype=dtype), tokenizer))
    plain = load_model(options(model_folder), tokenizer)
    assert model.dtype == getattr(torch, dtype)
    assert plain.dtype == torch.float32
    assert model.fingerprint == plain.fingerprint


def test_every_end_of_text_token_of_the_generation_configuration_stops(model_folder):
    tokenizer = load_tokenizer(options(model_folder))
    assert {256, 258} <= load_model(options(model_folder), tokenizer).stop_tokens


def test_other_weights_have_another_fingerprint(tiny):
    assert len({tiny.model(kind).fingerprint for kind in ("qwen3", "llama", "mistral")}) == 3


def test_a_model_that_ignores_positions_fails_the_probe(tiny, monkeypatch):
    model = tiny.model("llama")
    rotary = type(model.decoder.rotary_emb)
    honest = rotary.forward

    def stuck(self, x, position_ids):
        return honest(self, x, torch.arange(x.shape[1], device=x.device)[None].expand_as(position_ids))

    monkeypatch.setattr(rotary, "forward", stuck)
    with pytest.raises(CapabilityError, match="llama cannot be run exactly"):
        verified(model)
