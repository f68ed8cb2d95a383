"""Mistakes at the command line: one line, exit code 2, the word and a way out, nothing written, no weights loaded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from latentmas import tiny
from latentmas.cli import main

RUN = "run --method latent_mas --model_name tiny --task tiny --max_samples 2 --output_dir never"
MODEL = "run --method latent_mas --task tiny --max_samples 2 --output_dir never --model_name"
DATA = "run --method latent_mas --model_name scripted --task gsm8k --output_dir never --dataset"

# What is typed, and what the one line must name: the mistake and the way out.
MISTAKES = [
    # commands and names of options
    ("rnu", "'rnu'", "'run'"),
    ("RUN --method baseline", "'RUN'", "'run'"),
    ("--method baseline", "--method", "latentmas run --method"),
    (f"{RUN} --model x", "--model", "--model_name"),
    (f"{RUN} --latent_step 10", "--latent_step", "--latent_steps"),
    (f"{RUN} --Seed 3", "--Seed", "--seed"),
    (f"{RUN} --temperatur 0.3", "--temperatur", "--temperature"),
    (f"{RUN} --batch_size 3", "--batch_size", "--generate_bs"),
    (f"{RUN} --nonsense 3", "--nonsense", "--help"),
    (f"{RUN} -seed 3", "-seed", "--seed"),
    (f"{RUN} \u2014seed 3", "\u2014seed", "--seed"),
    (f"{RUN} -s 3", "-s", "--help"),
    (f"{RUN} gsm8k", "'gsm8k'", "--NAME VALUE"),
    ("tasks gsm8k", "'gsm8k'", "--NAME VALUE"),
    ("doctor --verbos", "--verbos", "doctor --help"),
    # switches and values
    (f"{RUN} --protect_thoughts=false", "'false'", "--no_protect_thoughts"),
    (f"{RUN} --protect_thoughts false", "'false'", "--no_protect_thoughts"),
    (f"{RUN} --no_think=1", "'1'", "--no_think turns --think off"),
    (f"{RUN} --think --no_think", "--think", "give one"),
    (f"{RUN} --seed", "--seed", "no value"),
    (f"{RUN} --seed --think", "--seed", "--think follows"),
    (f"{RUN} --seed ''", "--seed", "leave --seed out"),
    (f"{RUN} --prompt=", "--prompt", "leave --prompt out"),
    (f"{RUN} --seed many", "'many'", "a whole number"),
    (f"{RUN} --seed 1.5", "'1.5'", "a whole number"),
    (f"{RUN} --temperature 0,6", "'0,6'", "such as 0.5"),
    (f"{RUN} --temperature nan", "nan", "finite"),
    (f"{RUN} --latent_steps -3", "-3", "greater than or equal to 0"),
    (f"{RUN} --max_samples 0", "is 0", "-1 (all)"),
    (f"{RUN} --generate_bs 0", "is 0", "greater than or equal to 1"),
    (f"{RUN} --top_p 95", "95", "less than or equal to 1"),
    (f"{RUN} --filter receiver --keep 80", "80", "(0, 1]"),
    (f"{RUN} --filter receiver --keep 80%", "'80%'", "a number"),
    (f"{RUN} --date today", "'today'", "YYYY-MM-DD"),
    (f"{RUN} --filter receiver --filter_options x", "'x'", "JSON object"),
    # choices
    (f"{RUN} --method Latent_MAS", "'Latent_MAS'", "'latent_mas'"),
    (f"{RUN} --method 3", "'3'", "baseline, latent_mas, text_mas"),
    (f"{RUN} --task GSM8K", "'GSM8K'", "did you mean 'gsm8k'"),
    (f"{RUN} --prompt Sequential", "'Sequential'", "did you mean 'sequential'"),
    (f"{RUN} --filter Receiver", "'Receiver'", "did you mean 'receiver'"),
    (f"{RUN} --dtype fp16", "'fp16'", "did you mean 'float16'"),
    (f"{RUN} --dtype BF16", "'BF16'", "did you mean 'bfloat16'"),
    (f"{RUN} --dtype int8", "'int8'", "'float32'"),
    (f"{RUN} --alignment Ridge", "'Ridge'", "did you mean 'ridge'"),
    (f"{RUN} --topology ring", "'ring'", "'chain' or 'parallel'"),
    (f"{RUN} --device gpu", "'gpu'", "auto, cpu, cuda"),
    # files
    (f"{RUN} --task rows.jsonl", "'rows.jsonl'", "--dataset"),
    (f"{RUN} --task missing.yaml", "'missing.yaml'", "No such file"),
    (f"{RUN} --task folder.yaml", "'folder.yaml'", "directory"),
    (f"{RUN} --task latin.yaml", "'latin.yaml'", "save it as UTF-8"),
    (f"{RUN} --team folder", "'folder'", "directory"),
    (f"{RUN} --team latin.yaml", "'latin.yaml'", "save it as UTF-8"),
    (f"{RUN} --prompt latin.yaml", "'latin.yaml'", "save it as UTF-8"),
    (f"{RUN} --filter own.py", "'own.py'", "own.py:CLASS"),
    (f"{RUN} --filter own.py:Mine", "'own.py'", "SyntaxError"),
    (f"{RUN} --filter folder:Mine", "'folder'", "path.py:Name"),
    (f"{RUN} --output_dir rows.jsonl", "rows.jsonl", "choose another --output_dir"),
    (f"{RUN} --cache_dir rows.jsonl", "rows.jsonl", "give a folder"),
    # models
    (f"{MODEL} no_tokenizer", "'no_tokenizer'", "tokenizer.json"),
    (f"{MODEL} no_weights", "'no_weights'", ".safetensors"),
    (f"{MODEL} broken", "'broken'", "header too large"),
    (f"{MODEL} folder", "'folder'", "config.json"),
    (f"{MODEL} over", "'over'", "did you mean 'over/model'"),
    (f"{MODEL} adapter", "adapter (LoRA) of Qwen/Qwen3-4B", "merge_and_unload"),
    (f"{MODEL} adapter_and_config", "adapter (LoRA) of Qwen/Qwen3-4B", "merge_and_unload"),
    (f"{MODEL} short.gguf", "'short.gguf'", "get the file again"),
    (f"{MODEL} text.gguf", "'text.gguf'", "no GGUF file"),
    (f"{MODEL} missing.gguf", "'missing.gguf'", "that is there"),
    (f"{MODEL} no_tokenizer/config.json", "config.json", "--model_name no_tokenizer"),
    (f"{MODEL} TINY", "'TINY'", "'tiny'"),
    (f"{MODEL} ./missing", "'./missing'", "a local folder"),
    (f"{MODEL} https://huggingface.co/Qwen/Qwen3-4B", "address", "--model_name Qwen/Qwen3-4B"),
    ("vllm --model_name missing", "'missing'", "a local folder"),
    # data
    (f"{DATA} openai/gsm8k", "'openai/gsm8k'", "--task FILE.yaml"),
    (f"{DATA} gsm8k", "'gsm8k'", "without it gsm8k comes from the hub"),
    (f"{DATA} own.csv", "has no column 'question'", "question, answer"),
    (f"{DATA} own.parquet", "has no column 'question'", "--task FILE.yaml"),
    (f"{DATA} latin.csv", "latin.csv", "UTF-8"),
    (f"{DATA} missing.jsonl", "missing.jsonl", "give the path"),
    (f"{DATA} data", "data", "data/rows.jsonl"),
    (f"{DATA} text.gguf", "text.gguf", ".jsonl"),
    (f"{DATA} rows.jsonl --split train", "--split train", "drop"),
    # other commands
    ("grade", "RUN_FOLDER", "--help"),
    ("grade missing", "missing", "folder of a run"),
    ("grade rows.jsonl --grading Hub", "'Hub'", "'hub'"),
    ("plot embedding x", "'embedding'", "'embeddings'"),
    ("handovers --keeps 2", "'2'", "(0, 1]"),
    ("handovers --keeps ,", "','", "separated by commas"),
    ("handovers --filters ,", "','", "receiver,random"),
    ("handovers --filters best", "'best'", "choose from"),
    (
        "handovers --output_dir rows.jsonl",
        "rows.jsonl is a file, and runs need a folder",
        "choose another --output_dir",
    ),
    ("demo --max_samples x", "'x'", "a whole number"),
    ("vllm --model_name scripted", "'scripted'", "name a model"),
    (f"{RUN} --max_samples all", "'all'", "-1 is all"),
    (f"{RUN} --team=~/no/team.yaml", str(Path("~/no/team.yaml").expanduser()), "No such file"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files and models, each wrong in its own way."""
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("files")

    def model(name: str, *without: str) -> Path:
        made = folder / name
        made.mkdir(parents=True)
        for file in tiny.model_folder().iterdir():
            if not any(part in file.name for part in without):
                (made / file.name).write_bytes(file.read_bytes())
        return made

    model("no_tokenizer", "token")
    model("no_weights", ".safetensors")
    (model("broken") / "model.safetensors").write_bytes(b"x" * 40)
    model("over/model")
    adapter = json.dumps({"base_model_name_or_path": "Qwen/Qwen3-4B", "peft_type": "LORA"})
    for made in (model("adapter", "config.json", ".safetensors"), model("adapter_and_config", ".safetensors")):
        (made / "adapter_config.json").write_text(adapter)
        (made / "adapter_model.safetensors").write_bytes(b"x" * 40)
    for name in ("folder", "folder.yaml", "data"):
        (folder / name).mkdir()
    for name in ("rows.jsonl", "data/rows.jsonl"):
        (folder / name).write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (folder / "own.csv").write_text("asked,gold\n1 + 1?,2\n")
    parquet.write_table(pyarrow.table({"asked": ["1 + 1?"], "gold": ["2"]}), folder / "own.parquet")
    (folder / "latin.csv").write_bytes("question,answer\nh\u00e9?,#### 2\n".encode("latin-1"))
    (folder / "latin.yaml").write_bytes("name: h\u00e9\n".encode("latin-1"))
    (folder / "own.py").write_text("class Mine:\n    def")
    (folder / "short.gguf").write_bytes(b"GGUF\x03")
    (folder / "text.gguf").write_text("no model")
    return folder


@pytest.mark.parametrize("task", ["aime2024", "arc_easy", "gpqa", "humanevalplus", "mbppplus", "medqa", "winogrande"])
def test_a_file_in_other_columns_than_those_of_a_task_is_told_both_ways_out(task, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    line = f"run --method baseline --model_name scripted --task {task} --dataset own.csv --output_dir never"
    assert main([*line.split(), "--code_exec", "off"]) == 2
    [last] = capsys.readouterr().err.splitlines()
    assert f"rename its columns to those of {task}" in last
    assert "--task FILE.yaml" in last
    assert "1 + 1?" not in last, "the makers of some data sets ask not to show them"


def test_there_are_at_least_forty_mistakes():
    assert len({line for line, _, _ in MISTAKES}) == len(MISTAKES) >= 40


@pytest.mark.parametrize(("line", "named", "way"), MISTAKES, ids=[line.replace(RUN, "run") for line, _, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_way_out_and_exit_code_two(line, named, way, *, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [*said, last] = err.splitlines()
    assert all(": new run of " in each for each in said), "one line beside that which names the folder of the run"
    assert last.startswith("error: ")
    assert named in last
    assert way in last
    assert "Traceback" not in err
    assert sorted(files.rglob("*")) == before
