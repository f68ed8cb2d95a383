"""A .gguf file as a model name: what is loaded is the model in it, and what cannot be is refused in one sentence."""

import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from importlib import util

import numpy as np
import pytest
import real_model
import torch

from latentmas.backends import gguf_file
from latentmas.backends.gguf_file import check_file, is_gguf
from latentmas.backends.hf import load
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.load import LoadOptions, load_config, load_model, load_stop_tokens, load_tokenizer
from latentmas.backends.hf.verify import verified
from latentmas.cli import main
from latentmas.errors import CapabilityError, ConfigError
from latentmas.experiment import compose, engines, model_names
from latentmas.experiment.config import RunConfig

gguf = pytest.importorskip("gguf")

VOCABULARY = 264
END, TURN, TURN_ENDS = 261, 262, 263
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_gguf(path, causal, *, architecture="qwen2", alter=lambda writer: None, without=()):
    """Write a transformers model as llama.cpp would, with a byte tokenizer of one merge."""
    from tokenizers import pre_tokenizers

    config, kind = causal.config, gguf.MODEL_ARCH.QWEN2
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny random")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    signs = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    signs += [f"<unused {number}>" for number in range(END - len(signs))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*signs, "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([1] * len(signs) + [3] * 3)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(TURN_ENDS)
    writer.add_pad_token_id(END)
    writer.add_chat_template(TEMPLATE)
    alter(writer)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in causal.state_dict().items():
        stem, dot, end = name.rpartition(".")
        if name not in without:
            writer.add_tensor(f"{names.get_name(stem)}{dot}{end}", weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def causal(tiny):
    return tiny.causal("qwen2", dtype=torch.float32, vocab_size=VOCABULARY, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def file(causal, tmp_path_factory):
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny-random.gguf", causal)


def options(path, **changes):
    return LoadOptions(model_name=str(path), **changes)


def opened(path, **changes):
    tokenizer = load_tokenizer(options(path, **changes))
    return ChatCodec(tokenizer), verified(load_model(options(path, **changes), tokenizer))


def test_the_model_in_a_file_is_loaded_bit_by_bit_with_its_tokenizer_and_its_end_of_text(file, causal):
    codec, model = opened(file)
    for name, weight in causal.state_dict().items():
        assert torch.equal(model.causal.state_dict()[name], weight), name
    assert codec.encode_text("the<|im_end|>")[-1] == TURN_ENDS
    assert codec.decode(codec.encode_text("the thing, 12.5 é")) == "the thing, 12.5 é"
    assert "th" in codec.tokenizer.get_vocab(), "merges of the file count"
    assert len(codec.encode_text("the")) == 2
    assert codec.tokenizer.chat_template == TEMPLATE
    assert model.stop_tokens == load_stop_tokens(options(file), load_config(options(file)), codec.tokenizer)
    assert model.stop_tokens == {TURN_ENDS}
    assert (model.context, model.causal.config.architectures) == (4096, ["Qwen2ForCausalLM"])


def test_a_file_and_the_folder_made_of_it_are_one_model(file, tmp_path):
    real_model.unpack(file, tmp_path / "folder")
    from_file, from_folder = opened(file), opened(tmp_path / "folder")
    assert from_file[1].fingerprint == from_folder[1].fingerprint
    assert from_file[0].digest == from_folder[0].digest
    assert from_file[1].stop_tokens == from_folder[1].stop_tokens
    assert load_config(options(file)).architectures == load_config(options(tmp_path / "folder")).architectures


def test_what_lies_beside_a_file_is_not_taken_for_a_part_of_it(file, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "m")
    shutil.copy(file, tmp_path / "m" / "other.gguf")
    alone, beside = opened(file), opened(tmp_path / "m" / "other.gguf")
    assert alone[0].digest == beside[0].digest
    assert alone[1].stop_tokens == beside[1].stop_tokens
    assert alone[1].fingerprint == beside[1].fingerprint


def test_a_quantized_file_is_unpacked_to_the_dtype_asked_for(causal, tmp_path):
    def quantized(writer):
        wide = np.linspace(-1, 1, 256 * 8, dtype=np.float32).reshape(8, 256)
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor("spare.weight", gguf.quantize(wide, kind), raw_dtype=kind)

    path = save_gguf(tmp_path / "q.gguf", causal, alter=quantized)
    assert "spare.weight" in check_file(path).tensors, "sizes of blocks are counted right"
    _, model = opened(path, dtype="bfloat16")
    assert {weight.dtype for weight in model.causal.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("cut", [0, 3, 20, 500, 0.5, -1])
def test_a_file_cut_anywhere_is_refused_before_torch_is_asked(file, tmp_path, cut):
    content = file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(ConfigError, match=r"cut\.gguf.*get the (file again|whole file)|no GGUF file") as error:
        model_names.check_model_name(str(tmp_path / "cut.gguf"))
    assert "\n" not in str(error.value)


def test_no_number_in_a_header_makes_the_check_raise_anything_but_a_sentence(file, tmp_path):
    content = file.read_bytes()
    refused = 0
    for place in range(8, 2400, 4):
        broken = bytearray(content)
        struct.pack_into("<Q", broken, place, 2**62 + 7)
        (tmp_path / "lies.gguf").write_bytes(broken)
        with suppress(ConfigError):
            check_file(tmp_path / "lies.gguf")
            refused -= 1
        refused += 1
    assert refused > 300, "most of the first numbers are lengths and counts"


def test_something_else_with_the_suffix_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 this is a zip file, really")
    with pytest.raises(ConfigError, match="is no GGUF file: it begins with b'PK"):
        model_names.check_model_name(str(tmp_path / "a.gguf"))


def test_a_file_that_is_not_there_is_refused_as_a_file(tmp_path, capsys):
    words = ["run", "--method", "baseline", "--task", "tiny", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--model_name", "nobody/has-this.GGUF"]) == 2
    assert "there is no file 'nobody/has-this.GGUF'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no file"):
        load_tokenizer(options(tmp_path / "nor-this.gguf"))


def test_a_folder_with_nothing_but_a_file_says_to_give_the_file(file):
    with pytest.raises(ConfigError, match=r"1 GGUF file; give the file itself: --model_name .*tiny-random\.gguf"):
        model_names.check_model_name(str(file.parent))


def test_a_folder_may_be_called_like_a_file(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "m.gguf")
    assert not is_gguf(str(tmp_path / "m.gguf"))
    model_names.check_model_name(str(tmp_path / "m.gguf"))
    assert load_config(options(tmp_path / "m.gguf")).model_type == "qwen3"


def test_an_architecture_that_transformers_cannot_convert_is_refused_by_name(causal, tmp_path):
    path = save_gguf(tmp_path / "c.gguf", causal, architecture="clip")
    with pytest.raises(CapabilityError, match=r"architecture 'clip'.*give a transformers folder") as error:
        load_config(options(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("alter", "named"),
    [
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32)), "the tensor rope_freqs.weight"),
        (lambda w: w.add_string("qwen2.rope.scaling.type", "yarn"), "qwen2.rope.scaling.type = yarn"),
    ],
)
def test_rotary_scaling_that_transformers_would_drop_is_refused(causal, tmp_path, alter, named):
    path = save_gguf(tmp_path / "scaled.gguf", causal, alter=alter)
    with pytest.raises(CapabilityError, match=named):
        load_config(options(path))


def test_one_part_of_a_split_model_is_refused(causal, tmp_path):
    path = save_gguf(tmp_path / "part.gguf", causal, alter=lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(CapabilityError, match="one of 3 parts"):
        check_file(path)


def test_a_file_without_a_tensor_of_the_model_is_refused_instead_of_filled_with_random_numbers(causal, tmp_path):
    path = save_gguf(tmp_path / "less.gguf", causal, without=["model.layers.1.mlp.up_proj.weight"])
    with pytest.raises(ConfigError, match=r"lack 1 tensors.*up_proj"):
        load_model(options(path), load_tokenizer(options(path)))


def test_without_the_package_gguf_it_is_named(file, monkeypatch):
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None if name == "gguf" else util.find_spec(name))
    with pytest.raises(CapabilityError, match=r"pip install 'latentmas\[gguf\]'"):
        model_names.check_model_name(str(file))


def test_vllm_refuses_a_file_before_it_is_imported_and_names_the_way_by_a_folder(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = RunConfig.from_options(
        {"method": "baseline", "model_name": str(file), "task": "tiny", "use_vllm": True, "max_samples": 2}
    )
    with pytest.raises(CapabilityError, match=r"takes no GGUF file.*docs/real-models\.md"):
        compose.check(config)
    with pytest.raises(CapabilityError, match="takes no GGUF file"):
        engines.vllm_options(config, opened(file)[0], thinks=True)


def test_a_run_on_a_file_is_continued_and_says_the_fingerprint_of_the_folder(file, tmp_path, capsys):
    words = ["run", "--method", "latent_mas", "--model_name", str(file), "--task", "tiny", "--latent_steps", "2"]
    words += ["--max_new_tokens", "4", "--temperature", "0", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--max_samples", "3"]) == 0
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    (tmp_path / "out" / "records.jsonl").write_text("\n".join(lines[:1]) + "\n")
    assert main([*words, "--max_samples", "3"]) == 0
    assert "it/s" not in capsys.readouterr().err, "the bars of transformers are off"
    again = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(again) == len(lines) == 3
    assert again[0] == lines[0]
    assert load.fingerprint(opened(file)[1].causal) in (tmp_path / "out" / "manifest.json").read_text()


def test_a_file_is_the_first_thing_an_interpreter_asks_transformers_for(file):
    program = (
        "import sys; from latentmas.cli import main; "
        "sys.exit(main(['run', '--method', 'baseline', '--model_name', sys.argv[1], '--task', 'tiny', '--dry_run']))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
