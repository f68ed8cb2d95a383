"""What a resumed run must share with its beginning, with a real model folder."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from latentmas.cli import main


@pytest.fixture
def model(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def command(model, folder):
    options = ["--task", "tiny", "--max_samples", "4", "--latent_steps", "1", "--max_new_tokens", "3"]
    return ["run", "--method", "latent_mas", "--model_name", str(model), *options, "--output_dir", str(folder)]


def begun(model, folder):
    """Run, and forget the last two records."""
    assert main(command(model, folder)) == 0
    records = folder / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))


def change_template(model):
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_start|>the "))


def change_stop_tokens(model):
    path = model / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [65, 256]}))


def change_one_weight(model):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][-1, -3] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [(change_template, "prompt_digest"), (change_stop_tokens, "stop_tokens"), (change_one_weight, "model_fingerprint")],
)
def test_a_run_does_not_go_on_with_another_model(model, tmp_path, capsys, change, named):
    begun(model, tmp_path / "run")
    change(model)
    assert main(command(model, tmp_path / "run")) != 0
    assert named in capsys.readouterr().err


def test_a_run_goes_on_with_the_same_model(model, tmp_path):
    begun(model, tmp_path / "run")
    assert main(command(model, tmp_path / "run")) == 0
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 4


def test_a_view_for_somebody_who_is_not_in_the_team_is_refused(tmp_path, capsys):
    team = tmp_path / "team.yaml"
    team.write_text("agents:\n  - {name: solver, role: planner}\n  - {name: judge, role: judger}\n")
    words = ["run", "--method", "latent_mas", "--model_name", "scripted", "--task", "tiny_split"]
    assert main([*words, "--max_samples", "2", "--team", str(team), "--dry_run"]) == 2
    assert "who is not in the team: solver, judge" in capsys.readouterr().err
