"""What a resumed run must share with its beginning, with a real model folder."""

import datetime
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from latentmas import Team
from latentmas.cli import main
from latentmas.cli._pace import Pace
from latentmas.experiment.config import RunConfig
from latentmas.experiment.sweep import cells, sweep


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


@pytest.mark.parametrize(
    ("thinking", "goes_on"), [((), True), (("--latent_space_realign",), True), (("--alignment", "soft"), False)]
)
def test_a_run_goes_on_under_the_new_soft_temperature_only_where_it_never_took_the_old_one(
    model, tmp_path, capsys, thinking, goes_on
):
    again = [*command(model, tmp_path / "run"), *thinking]
    assert main(again) == 0
    path = tmp_path / "run" / "manifest.json"  # as a version wrote it whose default was 2.0
    assert '"soft_temperature": 0.5' in path.read_text()
    path.write_text(path.read_text().replace('"soft_temperature": 0.5', '"soft_temperature": 2.0'))
    capsys.readouterr()
    assert (main(again) == 0) == goes_on
    if not goes_on:
        assert "soft_temperature was 2.0 and is now 0.5" in capsys.readouterr().err
        assert main([*again, "--soft_temperature", "2.0"]) == 0


def print_the_date(model):
    path = model / "chat_template.jinja"
    path.write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + path.read_text())


def prompts(folder):
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [agent["prompt"] for line in lines for agent in json.loads(line)["agents"]]


def test_a_run_stays_on_the_day_it_began_however_often_it_is_resumed(model, tmp_path):
    print_the_date(model)
    folder = tmp_path / "run"
    assert main([*command(model, folder), "--date", "2001-02-03"]) == 0
    records = folder / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))
    assert main(command(model, folder)) == 0
    assert len(prompts(folder)) == 16
    assert all(prompt.startswith("Today is 03 Feb 2001.\n") for prompt in prompts(folder))
    assert json.loads((folder / "manifest.json").read_text())["date"] == "2001-02-03"


def test_a_run_does_not_go_on_on_another_day(model, tmp_path, capsys):
    print_the_date(model)
    begun(model, tmp_path / "run")
    today = json.loads((tmp_path / "run" / "manifest.json").read_text())["date"]
    assert abs(datetime.date.fromisoformat(today) - datetime.date.today()) <= datetime.timedelta(days=1)
    assert main([*command(model, tmp_path / "run"), "--date", today]) == 0
    assert main([*command(model, tmp_path / "run"), "--date", "2001-02-03"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"its prompts say that it is {today}, and now they would say 2001-02-03" in said


def test_a_run_whose_prompts_show_no_date_has_none(model, tmp_path, capsys):
    begun(model, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["date"] is None
    assert main([*command(model, tmp_path / "other"), "--date", "2001-02-03"]) != 0
    assert "shows a date; leave --date out" in " ".join(capsys.readouterr().err.split())


def test_all_hand_overs_of_a_sweep_are_measured_on_the_same_day(model, tmp_path):
    print_the_date(model)
    shared = {"method": "latent_mas", "model_name": str(model), "task": "tiny", "max_samples": 1, "max_new_tokens": 2}
    first = RunConfig.from_options({**shared, "latent_steps": 1, "date": "2001-02-03", "output_dir": tmp_path / "full"})
    assert main(["run", *words(first)]) == 0
    grid = cells(["recency"], [0.5], ["true"])
    list(sweep(grid, options={**shared, "latent_steps": 1}, folder=tmp_path, show=lambda n, cell: Pace(total=n)))
    shown = [prompt for cell in grid for prompt in prompts(tmp_path / cell.folder)]
    assert len(shown) == 4 * len(grid)
    assert all(prompt.startswith("Today is 03 Feb 2001.\n") for prompt in shown)


def words(config):
    return [word for name in config.model_fields_set for word in (f"--{name}", str(getattr(config, name)))]


def test_a_day_is_written_as_year_month_and_day(tmp_path, capsys):
    assert main([*command("tiny", tmp_path), "--date", "tomorrow"]) != 0
    assert "date is 'tomorrow'; it should be a day, written YYYY-MM-DD" in " ".join(capsys.readouterr().err.split())


def test_a_team_stays_on_one_day(model):
    print_the_date(model)
    team = Team(str(model), latent_steps=1, max_new_tokens=2, options={"date": "2001-02-03"})
    assert all(agent.prompt.startswith("Today is 03 Feb 2001.\n") for agent in team.ask("why?").agents)


def test_a_view_for_somebody_who_is_not_in_the_team_is_refused(tmp_path, capsys):
    team = tmp_path / "team.yaml"
    team.write_text("agents:\n  - {name: solver, role: planner}\n  - {name: judge, role: judger}\n")
    words = ["run", "--method", "latent_mas", "--model_name", "scripted", "--task", "tiny_split"]
    assert main([*words, "--max_samples", "2", "--team", str(team), "--dry_run"]) == 2
    assert "who is not in the team: solver, judge" in capsys.readouterr().err
