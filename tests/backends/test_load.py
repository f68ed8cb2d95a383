"""What is loaded and what is refused, and that refusing is cheap and by name."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentmas.backends.hf.load import LoadOptions, load_config, load_model, load_tokenizer
from latentmas.backends.hf.verify import verified
from latentmas.errors import CapabilityError, ConfigError
from latentmas.memory import LatentMemory


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


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="cannot be loaded") as error:
            load_config(options(path))
        assert "\n" not in str(error.value)


def test_flash_attention_is_refused_because_it_takes_no_mask_per_row(model_folder):
    with pytest.raises(CapabilityError, match="mask per row"):
        options(model_folder, attn_implementation="flash_attention_2")


def test_an_unknown_device_is_refused(model_folder):
    with pytest.raises(ConfigError, match="'warp'"):
        options(model_folder, device="warp").resolved_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_refused_where_there_is_none(model_folder):
    with pytest.raises(ConfigError, match="torch cannot use here"):
        options(model_folder, device="cuda").resolved_device()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_model_loads_in_every_dtype(model_folder, dtype):
    tokenizer = load_tokenizer(options(model_folder))
    assert verified(load_model(options(model_folder, dtype=dtype), tokenizer)).dtype == getattr(torch, dtype)


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_with_random_numbers(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 tensors.*up_proj"):
        load_model(options(tmp_path / "m"), load_tokenizer(options(model_folder)))


def test_tied_weights_are_not_missing(tiny, tmp_path):
    tiny.causal("qwen3", tied=True, dtype=torch.float32).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    assert load_model(options(tmp_path), load_tokenizer(options(tmp_path))).space().tied


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{broken"),
        ("config.json", b'{"model_type": "qwen3", "hidden_size": "abc"}'),
        ("tokenizer.json", b'{"version": "1.0"}'),
    ],
)
def test_a_broken_file_of_the_model_is_one_sentence(model_folder, tmp_path, file, content):
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        load_model(options(tmp_path / "m"), load_tokenizer(options(tmp_path / "m")))
    assert "\n" not in str(error.value)


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


def test_a_memory_that_counts_slots_for_positions_fails_the_probe(tiny, monkeypatch):
    model = tiny.model("qwen3")
    honest = LatentMemory.extend

    def by_slots(self, valid, agent, kind):
        first = self.slots
        positions = honest(self, valid, agent, kind)
        return torch.arange(first, first + valid.shape[1])[None].expand_as(positions)

    monkeypatch.setattr(LatentMemory, "extend", by_slots)
    with pytest.raises(CapabilityError, match="cannot be run exactly"):
        verified(model)


def test_weights_that_hold_what_is_no_number_are_refused_by_name(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][3, 5] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"{name} holds NaN"):
        load_model(options(tmp_path), None)
