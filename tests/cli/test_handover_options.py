"""Options of hand-overs, from the command line to the record, on the embedded model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from latentmas.cli import main
from latentmas.experiment.store import read_records
from latentmas.samples import Record

RUN = "run --method latent_mas --model_name tiny --task tiny_split --max_samples 3 --temperature 0 --latent_steps 3"

WINDOWED = {"sliding_window": 8, "model_type": "mistral", "layer_types": None}


def run(words: str, folder: Path) -> list[Record]:
    assert main([*shlex.split(f"{RUN} {words}"), "--output_dir", str(folder)]) == 0
    return list(read_records(folder / "records.jsonl"))


def test_a_record_says_what_each_hand_over_left_of_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in run("--filter receiver --keep 0.6", tmp_path / "run"):
        agents = {agent.name: agent for agent in record.agents}
        assert [len(agent.handovers) for agent in record.agents] == [1, 1, 1, 0]
        slots = 0.0
        for name in ("planner", "critic", "refiner"):
            [handover] = agents[name].handovers
            assert handover.slots_before == agents[name].memory_slots
            slots = int(handover.slots_before * 0.6)
            assert handover.slots_after == pytest.approx(max(slots, 4 + 3 * (1 + list(agents).index(name))))
            for total, part in (("slots_before", "slots_before"), ("bytes_after", "bytes_after")):
                assert getattr(handover, total) == pytest.approx(sum(getattr(s, part) for s in handover.shares))
            thoughts = [share for share in handover.shares if share.kind == "thought"]
            assert all(share.slots_before == share.slots_after == 3 for share in thoughts)
            assert handover.bytes_after < handover.bytes_before
            assert handover.trial_tokens > 0
            assert handover.keep == "receiver 0.6, protecting 4 sinks + thoughts"
        assert agents["critic"].memory_slots == agents["planner"].handovers[0].slots_after + (
            agents["critic"].prompt_tokens + 3
        )
    out = capsys.readouterr().out
    assert "memory kept at hand-overs" in out
    assert "read on trial as well" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["bytes_after_handovers"] < summary["bytes_before_handovers"]


def test_without_a_filter_a_record_has_no_hand_overs(tmp_path: Path) -> None:
    assert all(not agent.handovers for record in run("", tmp_path) for agent in record.agents)
    assert "handovers" not in (tmp_path / "records.jsonl").read_text()


def without_weights(folder: Path, changes: dict[str, object]) -> Path:
    """Make a folder of the embedded model without its weights, with another configuration."""
    from latentmas import tiny

    folder.mkdir()
    for file in tiny.model_folder().iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "--knn_filter --knn_percentage 0.8 --knn_strategy top",
        "--knn_filter --knn_percentage 0.5 --knn_strategy random --positions published",
        "--filter random --budget agent --keep 6 --positions rerotate",
        "--handover thoughts --positions rerotate --handover_storage int8",
        "--handover last_agent --handover_at every --filter recency --keep 0.7 --filter_at final",
        "--topology parallel --filter receiver --keep 0.5 --branch_order shuffled",
        "--topology parallel --control noise",
        "--include_old_prompts --filter key_difference --grain token --budget original",
    ],
)
def test_every_kind_of_hand_over_runs_and_resumes(tmp_path: Path, words: str) -> None:
    records = run(words, tmp_path)
    assert all(record.error is None for record in records)
    assert run(words, tmp_path) == records


def test_independent_agents_stand_in_a_record_in_the_order_of_their_branches(tmp_path: Path) -> None:
    plain = run("--topology parallel", tmp_path / "team")
    turned = run("--topology parallel --branch_order reversed", tmp_path / "reversed")
    assert [agent.name for agent in plain[0].agents] == ["planner", "critic", "refiner", "judger"]
    assert [agent.name for agent in turned[0].agents] == ["refiner", "critic", "planner", "judger"]
    for record in plain:
        *experts, judger = record.agents
        assert all(agent.memory_slots == agent.prompt_tokens + 3 for agent in experts)
        assert judger.memory_slots >= sum(agent.memory_slots for agent in experts) + judger.prompt_tokens
        assert record.agents[0].prompt != record.agents[1].prompt


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--filter reciever", "no filter is called 'reciever'; did you mean 'receiver'?"),
        ("--filter nowhere.py:Mine", "there is no file 'nowhere.py'"),
        ("--filter random --grain head", "filter 'random' has one way to choose; drop --grain head"),
        ("--filter receiver --filter_options '{\"size\": 3}'", "does not take these parameters"),
        ("--filter receiver --handover thoughts", "give --grain token"),
        ("--filter receiver --show_heatmaps", "which has no heatmap; give --grain token"),
        ("--filter receiver --use_vllm", "the vllm backend cannot do hand-overs that filter, move or pack memory"),
        ("--topology parallel --use_vllm", "the vllm backend cannot do independent agents (--topology parallel)"),
        ("--topology ring", "topology is 'ring'"),
        ("--topology parallel --filter sender", "looks at one agent's turn"),
        ("--handover thoughts --filter sender --grain token", "looks at one agent's turn"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_before_weights_are_loaded(
    tmp_path: Path, words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*shlex.split(f"{RUN} {words}"), "--output_dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        (WINDOWED, "--filter receiver", "has sliding windows, whose masks need"),
        (WINDOWED, "--knn_filter --positions published", "sliding windows"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "--topology parallel",
            "rotary positions of type 'dynamic'",
        ),
    ],
)
def test_what_a_model_cannot_do_is_known_from_its_configuration(
    tmp_path: Path, changes: dict[str, object], words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = RUN.replace("--model_name tiny", f"--model_name {without_weights(tmp_path / 'model', changes)}")
    assert main([*shlex.split(f"{command} {words}"), "--output_dir", str(tmp_path / "run")]) == 2
    assert sentence in capsys.readouterr().err


OWN = """
class Heads:
    def score(self, sight):
        memory = sight.memory
        heads = [memory.keys(layer).norm(dim=-1) for layer in range(memory.layers)]
        return __import__("torch").stack(heads).double()

class Said(Heads):
    grain = "layer"

class Coarse:
    needs = {"receiver", "random"}
    def score(self, sight):
        return sight.random * sight.receiver.norm(dim=-1, keepdim=True)

class Misspelt(Heads):
    needs = {"receiver_atention"}

class Text(Heads):
    needs = "receiver"

class Fine(Heads):
    grain = "fine"

class Ends:
    def __init__(self):
        raise OSError("no disk")
"""


@pytest.mark.parametrize(
    ("changes", "words", "sentence"),
    [
        (WINDOWED, "Heads", "has sliding windows, whose masks need one set of slots for all layers; let its scores"),
        (WINDOWED, "Said", "has sliding windows, whose masks need"),
        ({}, "Heads --handover thoughts", "chooses for each head, so that heads hold different slots"),
        ({}, "Said --handover last_agent", "chooses for each layer, so that heads hold different slots"),
        ({}, "Heads --show_heatmaps", "which has no heatmap; let its scores have the shape rows x slots"),
        ({}, "Misspelt", "is called 'receiver_atention'; did you mean 'receiver_attention'?"),
        ({}, "Text", "has needs 'receiver'; expected a set of some of: receiver,"),
        ({}, "Fine", "has grain 'fine'; expected one of token, layer, head"),
        ({}, "Ends", "cannot be built: OSError: no disk"),
    ],
)
def test_what_a_filter_of_ones_own_cannot_do_is_known_before_weights_are_loaded(
    tmp_path: Path, changes: dict[str, object], words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    command = RUN.replace("--model_name tiny", f"--model_name {without_weights(tmp_path / 'model', changes)}")
    assert main([*shlex.split(f"{command} --filter {own}:{words}"), "--output_dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [(WINDOWED, "Coarse"), ({}, "Coarse --handover thoughts"), ({}, "Heads")],
)
def test_a_filter_of_ones_own_is_refused_nothing_it_can_do(
    tmp_path: Path, changes: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    command = RUN.replace("--model_name tiny", f"--model_name {without_weights(tmp_path / 'model', changes)}")
    assert main([*shlex.split(f"{command} --dry_run --filter {own}:{words}")]) == 0, capsys.readouterr().err


def test_a_filter_whose_code_changed_does_not_go_on_with_the_old_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text("class Mine:\n    def score(self, sight):\n        return sight.memory.positions.double()\n")
    words = [*shlex.split(f"{RUN} --filter {own}:Mine --keep 0.5 --output_dir {tmp_path / 'run'}")]
    assert main(words) == 0
    (tmp_path / "run" / "records.jsonl").write_text("")
    own.write_text(own.read_text() + "# another day\n")
    capsys.readouterr()
    assert main(words) == 2
    assert "filter_digest" in capsys.readouterr().err


def test_the_table_of_hand_overs_is_made_by_one_command_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        f"handovers --filters receiver,knn-top --keeps 1,0.5 --positions true --max_samples 2 --output_dir {tmp_path}"
    )
    assert main(shlex.split(words)) == 0
    first = (tmp_path / "handovers.csv").read_text()
    assert len(first.splitlines()) == 1 + 1 + 3
    assert (tmp_path / "handovers.png").read_bytes()[:4] == b"\x89PNG"
    assert main(shlex.split(words)) == 0
    assert (tmp_path / "handovers.csv").read_text() == first
    assert main(shlex.split(f"handovers --keeps 1,2 --output_dir {tmp_path}")) == 2
    assert "--keeps has '2'" in capsys.readouterr().err
