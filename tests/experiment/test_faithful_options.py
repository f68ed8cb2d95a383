"""Options that decide what agents are told, who hears whom and how they sample, from the command line to the record."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from latentmas import Team
from latentmas.cli import main
from latentmas.errors import ConfigError
from latentmas.experiment import compose, models
from latentmas.experiment.config import RunConfig
from latentmas.experiment.store import read_records

SCRIPTED = "run --model_name scripted --task tiny --max_samples 2 --max_new_tokens 6 --temperature 0"
WORDS = r"""
system: "A clerk."
context_entry: "[{agent}]:\n{text}\n\n"
names: {planner: First}
agents:
  single: {single: "\n{question} \\boxed{X}\n"}
  planner: {text: "P {question}", latent: "L {question}"}
  judger: {text: "J {question}\n{context}.", latent: {tiny: "T {question}", number: "N {question}"}}
"""
PAIR = "agents:\n  - {name: planner, role: planner}\n  - {name: judger, role: judger}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my-words.yaml").write_text(WORDS)
    Path("pair.yaml").write_text(PAIR)
    return tmp_path


@pytest.fixture
def recommending(model_folder, tmp_path):
    """A model whose folder recommends how to sample."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    path = model / "generation_config.json"
    wish = {"do_sample": True, "temperature": 0.9, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **wish}))
    return model


def plan(words: str) -> compose.Plan:
    names = [word.removeprefix("--") for word in shlex.split(words)[::2]]
    given = dict(zip(names, shlex.split(words)[1::2], strict=True))
    return compose.check(RunConfig.from_options({"model_name": "scripted", "task": "tiny", "max_samples": 2, **given}))


def records(words: str, folder: Path):
    assert main([*shlex.split(f"{SCRIPTED} {words}"), "--output_dir", str(folder / "run")]) == 0
    return list(read_records(folder / "run" / "records.jsonl"))


def test_a_prompt_file_serves_all_methods_to_the_letter(folder):
    [first, _] = records("--method baseline --prompt my-words.yaml", folder / "a")
    assert first.agents[0].prompt == f"system: A clerk.\nuser: \n{first.question} \\boxed{{X}}\n\nassistant: "
    [first, _] = records("--method latent_mas --prompt my-words.yaml --team pair.yaml", folder / "b")
    told = [agent.prompt for agent in first.agents]
    assert told == [f"system: A clerk.\nuser: {mark} {first.question}\nassistant: " for mark in "LT"]
    [first, _] = records("--method text_mas --prompt my-words.yaml --team pair.yaml", folder / "c")
    notes = f"[First]:\n{first.agents[0].text.strip()}\n\n"
    assert first.agents[1].prompt == f"system: A clerk.\nuser: J {first.question}\n{notes}.\nassistant: "


def test_a_prompt_file_without_what_a_method_needs_is_refused_before_a_model_is_looked_for(folder, capsys):
    words = f"{SCRIPTED} --method text_mas --prompt my-words.yaml"
    assert main(shlex.split(words)) == 2
    error = capsys.readouterr().err
    assert "agent 'critic' has no text prompt of its own" in error
    assert "my-words.yaml, line 5, agents is called 'critic'" in error


def test_words_for_a_task_that_is_nearly_there_are_refused(folder, capsys):
    Path("my-words.yaml").write_text(WORDS.replace("{tiny:", "{gsm9k:"))
    words = f"{SCRIPTED} --method latent_mas --prompt my-words.yaml --team pair.yaml"
    assert main(shlex.split(words)) == 2
    assert "has words for task 'gsm9k'; did you mean 'gsm8k'?" in capsys.readouterr().err


def test_a_changed_prompt_file_is_another_run(folder, capsys):
    records("--method baseline --prompt my-words.yaml", folder)
    Path("my-words.yaml").write_text(WORDS.replace("A clerk", "The clerk"))
    assert main([*shlex.split(f"{SCRIPTED} --method baseline --prompt my-words.yaml"), "--output_dir", "run"]) == 2
    assert "prompts have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "topology"),
    [
        ("--method text_mas --prompt hierarchical", "parallel"),
        ("--method text_mas --prompt hierarchical --topology chain", "chain"),
        ("--method text_mas --prompt hierarchical --team team.yaml", "chain"),
        ("--method text_mas --prompt sequential", "chain"),
        ("--method text_mas --prompt sequential --topology parallel", "parallel"),
        ("--method latent_mas --prompt hierarchical", "chain"),
    ],
)
def test_a_prompt_set_may_say_that_its_experts_work_alone(words, topology, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roles = ("planner", "critic", "refiner", "judger")
    Path("team.yaml").write_text("agents:\n" + "".join(f"  - {{name: {role}, role: {role}}}\n" for role in roles))
    made = plan(words)
    assert made.topology == made.config.topology == topology
    assert re.search(rf"^topology +{topology}$", made.counts(), re.MULTILINE)


def test_the_manifest_says_who_heard_whom(folder):
    records("--method text_mas --prompt hierarchical", folder)
    assert json.loads((folder / "run" / "manifest.json").read_text())["config"]["topology"] == "parallel"


def test_the_library_resolves_a_topology_as_the_command_does():
    assert Team("scripted", method="text_mas", prompt="hierarchical").config.topology == "parallel"
    assert Team("scripted", method="latent_mas", prompt="hierarchical").graph.is_chain


def test_what_a_model_folder_recommends_and_a_run_ignores_is_said_once_and_stored(recommending, tmp_path, capsys):
    words = ["run", "--method", "baseline", "--task", "tiny", "--max_samples", "3", "--max_new_tokens", "3"]
    words += ["--model_name", str(recommending), "--output_dir", str(tmp_path / "run"), "--top_p", "1"]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert error.count("the model folder recommends temperature 0.9, top_k 5, repetition_penalty 1.3, which") == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["environment"]["ignored_sampling"] == "temperature 0.9, top_k 5, repetition_penalty 1.3"


def test_sampling_model_takes_what_was_not_given_and_leaves_it_in_the_program(recommending, tmp_path, capsys):
    words = ["run", "--method", "baseline", "--task", "tiny", "--max_samples", "3", "--sampling", "model", "--dry_run"]
    assert main([*words, "--model_name", str(recommending), "--top_p", "0.7"]) == 0
    out, err = capsys.readouterr()
    assert "temperature 0.9, top-p 0.7, top-k 5, repetition penalty 1.3" in out
    assert err == ""
    (recommending / "generation_config.json").write_text("{}")
    assert main([*words, "--model_name", str(recommending)]) == 0
    assert "recommends no sampling, so --sampling model changes nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"), [("{", "not valid JSON"), ("[]", "expected an object"), ('{"top_k": "20"}', "top_k '20'")]
)
def test_a_recommendation_that_cannot_be_read_is_refused(recommending, content, complaint):
    (recommending / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        Team(str(recommending), method="baseline")


def test_a_folder_without_recommendations_or_with_odd_ones_says_nothing(recommending, capsys):
    config = RunConfig.from_options({"method": "baseline", "model_name": str(recommending)})
    path = recommending / "generation_config.json"
    path.write_text('{"do_sample": false, "temperature": 0.7, "top_p": null}')
    assert models.recommended_sampling(config) == {"temperature": 0.7}
    path.unlink()
    assert models.recommended_sampling(config) == {}
    assert capsys.readouterr().err == ""


def test_a_team_is_greedy_unless_it_asks_for_what_the_model_recommends(recommending, model_folder):
    assert Team(str(recommending), method="baseline").config.temperature == 0
    assert Team(str(recommending), method="baseline", options={"sampling": "model"}).config.temperature == 0.9
    assert Team(str(model_folder), method="baseline", options={"sampling": "model"}).config.temperature == 0


def test_a_recommendation_that_vllm_cannot_follow_is_refused(recommending, monkeypatch, capsys):
    from latentmas.backends.vllm import compatibility

    monkeypatch.setattr(compatibility, "check_installed", lambda: "0.32.0")
    words = ["run", "--method", "latent_mas", "--task", "tiny", "--max_samples", "3", "--use_vllm"]
    assert main([*words, "--model_name", str(recommending), "--sampling", "model"]) == 2
    assert "--repetition_penalty 1.3" in capsys.readouterr().err


def test_a_ridge_is_kept_for_each_length_of_the_tokenizer(model_folder, tmp_path):
    """Another tokenizer reads other rows of the same weights; a stored matrix of one is not taken for the other."""
    longer = shutil.copytree(model_folder, tmp_path / "model")
    path = longer / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = content["added_tokens"][:-1]
    path.write_text(json.dumps(content))
    settings = longer / "tokenizer_config.json"
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: value for name, value in told.items() if name == "tokenizer_class"}))
    for model in (model_folder, longer):
        Team(str(model), options={"alignment": "ridge", "cache_dir": tmp_path / "cache"})
    kept = sorted(path.name for path in (tmp_path / "cache" / "alignment").iterdir())
    assert [re.search(r"-(\d+)-float32", name)[1] for name in kept] == ["259", "260"]


def test_an_unknown_way_to_sample_is_refused():
    with pytest.raises(ConfigError, match="sampling is 'folder'"):
        RunConfig.from_options({"method": "baseline", "model_name": "m", "sampling": "folder"})
