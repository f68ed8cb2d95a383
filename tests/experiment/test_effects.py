"""An option that has no effect in a run says so once, or is refused; no option is silently ignored."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from latentmas import Team
from latentmas.agents import chain
from latentmas.cli import main
from latentmas.errors import ConfigError, LatentMASError
from latentmas.experiment import compose
from latentmas.experiment.config import RunConfig
from latentmas.experiment.effects import Situation, idle_options, remarks
from latentmas.program import Program, Read, Think, Write
from latentmas.samples import AnswerKind

LATENT = {"method": "latent_mas", "model_name": "tiny", "task": "tiny", "max_samples": 2}
OWN_NUMBERS = "agents:\n  - {name: a, role: planner, latent_steps: 3}\n  - {name: b, role: judger}\n"
ALONE = "agents:\n  - {name: b, role: judger}\n"
TWO = "agents:\n  - {name: a, role: planner}\n  - {name: b, role: judger}\n"
ROWS = '{"question": "How many?", "answer": "#### 3"}\n{"question": "How few?", "answer": "#### 4"}\n'
FILES = {"own.yaml": OWN_NUMBERS, "alone.yaml": ALONE, "two.yaml": TWO, "rows.jsonl": ROWS}

HAS_AN_EFFECT: Mapping[str, str] = {
    "method": "always",
    "model_name": "always",
    "task": "always",
    "prompt": "always: one agent alone has a prompt of the set, too",
    "max_new_tokens": "always",
    "temperature": "always",
    "repetition_penalty": "always, also when greedy",
    "generate_bs": "always: the size of a batch, or the requests an engine has at once",
    "output_dir": "always",
    "dry_run": "always",
    "save_ids": "always: every method has prompts and texts",
    "save_embeddings": "always on transformers; refused elsewhere",
    "use_vllm": "always; refused for a backend without a model",
    "dataset": "always",
}

# An option, the words that give it, what else is said, and the reason that is told.
TOLD = [
    ("max_samples", "--max_samples 1001", "", "no more than 1000 samples"),
    ("topology", "--topology parallel", "--method baseline", "one agent alone"),
    ("topology", "--topology chain", "--team two.yaml", "a team of two is the same either way"),
    ("branch_order", "--branch_order shuffled", "", "side by side"),
    ("branch_order", "--branch_order team", "--method text_mas", "no memory"),
    ("team", "--team two.yaml", "--method baseline", "one agent alone"),
    ("enable_thinking", "--enable_thinking", "", "the same with and without thinking"),
    ("enable_thinking", "--no_enable_thinking", "--model_name scripted", "no chat template"),
    ("include_old_prompts", "--include_old_prompts", "--method text_mas", "no memory"),
    ("latent_steps", "--latent_steps 20", "--method text_mas", "no memory"),
    ("latent_steps", "--latent_steps 9", "--team own.yaml", "a number of its own"),
    ("latent_steps", "--latent_steps 9", "--team alone.yaml", "hands over nothing"),
    ("latent_steps", "--latent_steps 9", "--control no_transfer", "works alone"),
    ("alignment", "--alignment norm", "--latent_steps 0", "nobody thinks"),
    ("alignment", "--alignment soft", "--control noise", "random vectors"),
    ("latent_space_realign", "--latent_space_realign", "--method baseline", "one agent alone"),
    ("soft_temperature", "--soft_temperature 2.0", "--alignment norm", "--alignment soft"),
    ("handover", "--handover full", "--method baseline", "one agent alone"),
    ("handover", "--handover last_agent", "--topology parallel", "its own"),
    ("handover_at", "--handover_at every", "", "cuts nothing"),
    ("handover_at", "--handover_at every", "--topology parallel", "to the agent that answers"),
    ("soft_temperature", "--soft_temperature 1", "--latent_steps 0", "nobody thinks"),
    ("handover_at", "--handover_at every", "--handover thoughts --topology parallel", "to the agent that answers"),
    ("filter", "--filter recency", "--method text_mas", "no memory"),
    ("keep", "--keep 0.5", "--filter sink_thoughts", "all of them are protected"),
    ("budget", "--budget original", "--filter thoughts", "all of them are protected"),
    ("grain", "--grain token", "--method baseline --filter receiver", "one agent alone"),
    ("filter_at", "--filter_at every", "--filter recency --team two.yaml", "to the agent that answers"),
    ("protect_sinks", "--protect_sinks 4", "--method baseline --filter recency", "one agent alone"),
    ("protect_newest", "--protect_newest 5", "--knn_filter", "newest 5 slots anyway"),
    ("protect_thoughts", "--protect_thoughts", "--filter recency --latent_steps 0", "nobody thinks"),
    ("filter_options", "--filter_options {}", "--method text_mas --filter recency", "no memory"),
    ("knn_filter", "--knn_filter", "--method baseline", "one agent alone"),
    ("knn_percentage", "--knn_percentage 0.8", "--knn_filter --control no_transfer", "works alone"),
    ("knn_min_keep", "--knn_min_keep 5", "--knn_filter --protect_newest 9", "keeps more"),
    ("knn_strategy", "--knn_strategy top", "--knn_filter --method text_mas", "no memory"),
    ("positions", "--positions true", "", "nothing is dropped"),
    ("handover_storage", "--handover_storage int8", "--control no_transfer", "works alone"),
    ("top_p", "--top_p 0.95", "--temperature 0", "greedy"),
    ("top_k", "--top_k 5", "--temperature 0", "greedy"),
    ("min_p", "--min_p 0.1", "--temperature 0", "greedy"),
    ("seed", "--seed 42", "--temperature 0", "nothing else is drawn"),
    ("sampling", "--sampling model", "", "changes nothing"),
    ("text_mas_context_length", "--text_mas_context_length -1", "", "no text"),
    ("text_mas_context_tokens", "--text_mas_context_tokens 9", "--method baseline", "one agent alone"),
    ("text_mas_context_tokens", "--text_mas_context_tokens 9", "--method text_mas --team alone.yaml", "reads another"),
    ("grading", "--grading strict", "", "are no code"),
    ("math_verify", "--math_verify", "--task tiny_letters.yaml", "are no numbers"),
    ("code_exec", "--code_exec off", "", "are no code"),
    ("allow_unsafe_code_exec", "--allow_unsafe_code_exec", "", "are no code"),
    ("grading_workers", "--grading_workers 2", "", "are no code"),
    ("dtype", "--dtype auto", "--model_name scripted", "without a model"),
    ("attn_implementation", "--attn_implementation sdpa", "--model_name scripted", "without a model"),
    ("revision", "--revision main", "", "no model of the hub"),
    ("trust_remote_code", "--trust_remote_code", "", "comes without code"),
    ("device", "--device cpu", "--model_name scripted", "without a model"),
    ("device_map", "--device_map auto", "--model_name scripted", "without a model"),
    ("cache_dir", "--cache_dir cache", "", "kept there"),
    ("save_withheld", "--save_withheld", "", "withheld"),
]
REFUSED = [
    ("split", "--split test", "--task gsm8k --dataset rows.jsonl"),
    ("control", "--control noise", "--method text_mas"),
    ("date", "--date 2001-02-03", ""),
    ("keep", "--keep 0.5", ""),
    ("budget", "--budget cache", ""),
    ("grain", "--grain token", "--filter random"),
    ("filter_at", "--filter_at every", ""),
    ("protect_sinks", "--protect_sinks 0", ""),
    ("protect_newest", "--protect_newest 0", ""),
    ("protect_thoughts", "--no_protect_thoughts", ""),
    ("filter_options", "--filter_options {}", ""),
    ("knn_percentage", "--knn_percentage 0.8", ""),
    ("knn_min_keep", "--knn_min_keep 5", "--filter knn"),
    ("knn_strategy", "--knn_strategy top", ""),
    ("keep", "--keep 0.8", "--knn_filter"),
    ("show_heatmaps", "--show_heatmaps", "--method baseline"),
    ("show_heatmaps_singlelayer", "--show_heatmaps_singlelayer", "--method text_mas"),
    ("save_embeddings", "--save_embeddings", "--model_name scripted"),
    ("use_vllm", "--use_vllm", "--model_name scripted"),
    ("tensor_parallel_size", "--tensor_parallel_size 1", ""),
    ("max_model_len", "--max_model_len 4096", ""),
    ("enable_prefix_caching", "--enable_prefix_caching", ""),
    ("gpu_memory_utilization", "--gpu_memory_utilization 0.9", ""),
    ("vllm_options", "--vllm_options {}", ""),
    ("use_second_HF_model", "--use_second_HF_model", ""),
    ("device2", "--device2 cuda:1", ""),
    ("alignment", "--alignment ridge", "--no_latent_space_realign"),
    ("filter", "--filter knn", "--no_knn_filter"),
    ("topology", "--topology chain", "--team edges.yaml"),
]
ELSEWHERE = {"think", "retry_errors"}
"""Tested below, each with a setting of its own."""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that has the files of the table."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "edges.yaml").write_text(TWO + "edges:\n  - [a, b]\n")
    (tmp_path / "letters.jsonl").write_text('{"q": "Which?", "a": "one", "b": "two", "gold": "A"}\n')
    (tmp_path / "tiny_letters.yaml").write_text(
        "name: letters\nanswer_kind: choice\ndata: letters.jsonl\nquestion: q\ntarget: gold\noptions: [a, b]\n"
    )


def said(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Return the exit code and the lines on stderr of a dry run; what `words` say last counts."""
    command = "run --method latent_mas --model_name tiny --task tiny --max_samples 2 --dry_run"
    code = main(shlex.split(f"{command} {words}"))
    return code, capsys.readouterr().err.splitlines()


def test_every_option_is_in_the_table_of_what_is_told_or_refused_or_has_an_effect_always() -> None:
    told = {option for option, *_ in (*TOLD, *REFUSED)}
    assert told | HAS_AN_EFFECT.keys() | ELSEWHERE == RunConfig.model_fields.keys()


@pytest.mark.parametrize(("option", "words", "more", "reason"), TOLD)
def test_an_option_without_effect_says_so_in_one_line(
    option: str, words: str, more: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = said(f"{more} {words}", capsys)
    about = [line for line in lines if re.search(rf"--{option}\b", line.partition(":")[0])]
    assert (code, len(about)) == (0, 1), lines
    assert reason in about[0]


@pytest.mark.parametrize(("option", "words", "more"), REFUSED)
def test_an_option_that_is_certainly_a_mistake_is_refused_in_one_line(
    option: str, words: str, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = said(f"{more} {words}", capsys)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ")
    assert option in lines[0] or words.split(maxsplit=1)[0] in lines[0]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--temperature 0 --latent_steps 3 --max_new_tokens 9 --prompt tiny --control noise --seed 4",
        "--temperature 0.5 --top_p 0.9 --top_k 5 --min_p 0.1 --seed 3",
        "--handover thoughts --handover_at every --positions rerotate --handover_storage int8 --latent_steps 2",
        "--topology parallel --branch_order shuffled --temperature 0 --seed 1",
        "--filter random --keep 0.5 --budget original --temperature 0 --seed 1 --filter_at final",
        "--filter receiver --grain token --protect_sinks 0 --no_protect_thoughts --protect_newest 3 --positions true",
        "--knn_filter --knn_percentage 0.5 --knn_strategy random --knn_min_keep 3 --temperature 0 --seed 1",
        "--alignment soft --soft_temperature 0.5 --include_old_prompts --think",
        "--method text_mas --text_mas_context_length 90 --topology parallel --team two.yaml --no_use_vllm",
        "--control none --no_think --no_latent_space_realign --no_enable_prefix_caching",
    ],
)
def test_nothing_is_said_of_options_that_have_an_effect_or_turn_off_what_is_off(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = said(words, capsys)
    assert code == 0
    assert [line for line in lines if "topology" not in line] == []


def test_one_command_line_serves_all_methods_and_each_option_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    shared = (
        "--latent_steps 3 --alignment soft --soft_temperature 1 --handover full --filter recency --keep 0.5 "
        "--positions rerotate --text_mas_context_length 50 --topology parallel --branch_order reversed --seed 1"
    )
    counts = {}
    for method in ("baseline", "text_mas", "latent_mas"):
        code, lines = said(f"--method {method} {shared}", capsys)
        assert code == 0
        told = [name for line in lines for name in re.findall(r"--(\w+)", line.partition(":")[0])]
        assert len(told) == len(set(told))
        counts[method] = len(told)
    assert counts == {"baseline": 10, "text_mas": 8, "latent_mas": 1}


def test_what_is_told_comes_once_in_a_run_and_again_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "run --method baseline --model_name scripted --task tiny --max_samples 2 --max_new_tokens 4"
    for _ in range(2):
        assert main(shlex.split(f"{words} --latent_steps 3 --output_dir {tmp_path / 'run'}")) == 0
        assert capsys.readouterr().err.count("--latent_steps has no effect: baseline is one agent alone\n") == 1


def test_a_retry_of_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run --method baseline --model_name scripted --task tiny --max_samples 2 --max_new_tokens 4"
    assert main(shlex.split(f"{words} --retry_errors --output_dir {tmp_path / 'run'}")) == 0
    assert capsys.readouterr().err.count("--retry_errors has no effect: no sample has ended with an error\n") == 1


# The model


def folder_with(model_folder: Path, path: Path, template: str | None) -> str:
    """Return a copy of a model folder, without its weights, with another chat template."""
    path.mkdir()
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "chat_template.jinja":
            (path / file.name).write_bytes(file.read_bytes())
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return str(path)


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def told_of(model: str, **options: object) -> tuple[str, ...]:
    config = RunConfig.from_options({**LATENT, "model_name": model, **options})
    return tuple(line for line in compose.check(config).remarks if "recommends" not in line)


def test_a_model_without_a_chat_template_is_told(model_folder: Path, tmp_path: Path) -> None:
    plain = folder_with(model_folder, tmp_path / "plain", None)
    assert told_of(plain) == (
        "the model has no chat template: prompts are plain text, a line 'Question: ...' and then 'Answer:'",
    )
    asked, _ = told_of(plain, enable_thinking=True)
    assert asked == "--enable_thinking has no effect: the model has no chat template"


def test_a_template_that_heeds_thinking_is_not_told_and_one_that_opens_each_reply_is(
    model_folder: Path, tmp_path: Path
) -> None:
    heeds = TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    assert told_of(folder_with(model_folder, tmp_path / "heeds", heeds), enable_thinking=True) == ()
    assert compose.check(RunConfig.from_options({**LATENT, "model_name": str(tmp_path / "heeds")})).meaning.unsaid == {
        "enable_thinking": True,
        "grain": None,
    }
    opens = folder_with(model_folder, tmp_path / "opens", TURNS + "<think>\n")
    assert told_of(opens, think=True) == (
        "--think has no effect: the chat template starts each reply with a thought itself",
    )


@pytest.mark.parametrize("option", [{"alignment": "ridge"}, {"latent_space_realign": True}])
def test_a_ridge_on_tied_embeddings_is_told(model_folder: Path, tmp_path: Path, option: dict[str, object]) -> None:
    folder = folder_with(model_folder, tmp_path / "model", TURNS)
    assert told_of(folder, **option) == ()
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    [name] = option
    assert told_of(folder, **option) == (
        f"--{name} has no effect: input and output embedding of this model are one matrix, for which ridge is norm",
    )


# Grading of code, engines


def situation(**changes: object) -> Situation:
    steps = (Read(agent="a", tokens=(1,), text="a"), Think(agent="a", steps=1), Write(agent="a", max_new_tokens=1))
    return replace(Situation(task=None, graph=chain(), program=Program(steps)), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("level", "named"),
    [("bwrap", {"allow_unsafe_code_exec"}), ("off", {"allow_unsafe_code_exec", "grading_workers"}), ("rlimit", set())],
)
def test_a_permission_that_is_not_needed_is_told(level: str, named: set[str]) -> None:
    code = compose.find_task("humanevalplus")
    assert code.answer_kind is AnswerKind.CODE
    given = {"allow_unsafe_code_exec": True, "grading_workers": 2, "grading": "hub"}
    config = RunConfig.from_options({**LATENT, **given})
    told = {name for idle in idle_options(config, situation(task=code, confined_by=level)) for name in idle.names}
    assert told & given.keys() == named


def test_options_of_a_second_model_that_does_not_think_are_told() -> None:
    config = RunConfig.from_options(
        {**LATENT, "method": "baseline", "use_vllm": True, "use_second_HF_model": True, "device2": "cuda:1"}
    )
    alone = Program((Read(agent="a", tokens=(1,), text="a"), Write(agent="a", max_new_tokens=1)))
    assert remarks(config, situation(program=alone)) == (
        "--use_second_HF_model and --device2 have no effect: nobody thinks, so vLLM works alone",
    )
    lonely = RunConfig.from_options({**LATENT, "use_vllm": True, "device2": "cuda:1"})
    assert remarks(lonely, situation()) == ("--device2 has no effect: it belongs to --use_second_HF_model",)


# The library


def test_a_team_refuses_what_was_given_as_a_run_does() -> None:
    for keep in (0.4, 0.5):
        with pytest.raises(ConfigError, match="--keep is an option of --filter"):
            Team("tiny", options={"keep": keep})
    with pytest.raises(ConfigError, match="--gpu_memory_utilization is an option of vLLM"):
        Team("tiny", options={"gpu_memory_utilization": 0.9})
    with pytest.raises(ConfigError, match="'seed' is an argument of Team itself"):
        Team("tiny", options={"seed": 3})


def test_a_team_is_wired_once() -> None:
    with pytest.raises(ConfigError, match="graph says who hears whom, and so does the option 'topology'"):
        Team("tiny", graph=chain(), options={"topology": "parallel"})


@pytest.mark.parametrize(
    "option", [{"retry_errors": True}, {"max_samples": 3}, {"dry_run": True}, {"code_exec": "off"}]
)
def test_a_team_refuses_options_of_a_run(option: dict[str, object]) -> None:
    with pytest.raises(LatentMASError, match="is an option of `latentmas run` and means nothing to a Team"):
        Team("tiny", options=option)


def test_a_team_says_once_what_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="latentmas"):
        Team("scripted", method="baseline", latent_steps=3, options={"top_p": 0.9})
        assert [record.message for record in caplog.records] == [
            "--latent_steps has no effect: baseline is one agent alone",
            "--top_p has no effect: temperature 0 is greedy",
        ]
        caplog.clear()
        Team("scripted", method="baseline", graph=chain())
        assert [record.message for record in caplog.records] == ["graph has no effect: baseline is one agent alone"]
        caplog.clear()
        Team("scripted", latent_steps=3)
    assert caplog.records == []
