"""``latentmas plot``: the picture, its coordinates, the table, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from latentmas.alignment import EmbeddingSpace
from latentmas.cli import main
from latentmas.experiment.artifacts import RunArtifacts
from latentmas.protocols import AgentVectors

WIDTH, VOCABULARY, THOUGHTS = 8, 30, 5
AGENTS = ("planner", "[b]$critic_{", "日本")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run of three questions leaves it."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    space = EmbeddingSpace(
        embed=lambda ids: weight[ids],
        head=weight,
        logits=lambda hidden: hidden @ weight.T,
        vocabulary=VOCABULARY,
        tied=True,
        compute=torch.float32,
    )
    sink = RunArtifacts(
        tmp_path / "run", heatmaps=False, middle_layer=False, embeddings=True, model_id="random", space=space
    )
    for sample in ("q1", "q2", "a/b"):
        sink.vectors(
            sample,
            [
                AgentVectors(
                    agent=agent,
                    prompt=torch.randn(WIDTH, generator=generator),
                    # The first thinks in tokens of the vocabulary, the last one not at all.
                    thoughts=2 * weight[:THOUGHTS] if agent == "planner" else torch.randn(number, WIDTH),
                    hidden=torch.randn(WIDTH, generator=generator),
                )
                for agent, number in zip(AGENTS, (THOUGHTS, THOUGHTS, 0), strict=True)
            ],
        )
    return tmp_path / "run"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_picture_coordinates_and_table_are_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "embeddings", str(run)]) == 0
    said = capsys.readouterr()
    with Image.open(run / "embeddings.png") as image:
        image.load()
        assert image.size[0] > 1000
        assert image.size[1] > 700
    rows = rows_of(run / "embeddings.csv")
    kinds = [row["kind"] for row in rows]
    assert (kinds.count("vocabulary"), kinds.count("prompt"), kinds.count("thought")) == (VOCABULARY, 9, 6 * THOUGHTS)
    assert len(rows) == len(kinds)
    assert {row["sample"] for row in rows} == {"", "q1", "q2", "a/b"}
    assert {row["agent"] for row in rows} == {"", *AGENTS}
    assert [row["step"] for row in rows if row["kind"] == "thought"][:THOUGHTS] == list("01234")
    lines = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if line.strip()}
    assert lines["planner"][:2] == ["3", "15"]
    assert lines["planner"][3] == "1.000"  # the cosine of a token with itself
    assert lines["[b]$critic_{"][:2] == ["3", "15"]
    assert lines["日本"] == ["3", "0", "-", "-", "-"]
    assert "embeddings.png" in said.err


def test_drawing_again_gives_the_same_files(run: Path) -> None:
    made = []
    for _ in range(2):
        assert main(["plot", "embeddings", str(run)]) == 0
        made.append((run / "embeddings.png").read_bytes() + (run / "embeddings.csv").read_bytes())
    assert made[0] == made[1]


def test_a_part_of_the_samples_can_be_drawn_elsewhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "first.png"
    assert main(["plot", "embeddings", str(run), "--max-samples", "1", "--output", str(output)]) == 0
    assert {path.name for path in output.parent.iterdir()} == {"first.png", "first.csv"}
    assert len([row for row in rows_of(output.with_suffix(".csv")) if row["kind"] == "prompt"]) == 3
    assert "1 of 3 samples were drawn" in capsys.readouterr().err
    assert not (run / "embeddings.png").exists()


def test_turns_that_broke_are_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "embeddings" / "q1.safetensors"
    tensors = load_file(path)
    tensors["1.thoughts"][2, 3] = np.nan
    save_file(tensors, path)
    assert main(["plot", "embeddings", str(run)]) == 0
    assert "1 of 9 turns hold NaN or infinite numbers and were left out" in capsys.readouterr().err
    assert len([row for row in rows_of(run / "embeddings.csv") if row["kind"] == "prompt"]) == 8


def test_hidden_states_are_drawn_when_asked_for(run: Path) -> None:
    assert main(["plot", "embeddings", str(run), "--hidden"]) == 0
    assert len([row for row in rows_of(run / "embeddings.csv") if row["kind"] == "hidden"]) == 9


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["embedding", "{run}"], "did you mean 'embeddings'?"),
        (["embeddings", "{run}/nowhere"], "has no embeddings"),
        (["embeddings", "{run}", "--output", "picture.pdf"], "give the name of a .png"),
        (["embeddings", "{run}", "--max_samples", "0"], "max_samples"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    words: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", *(word.format(run=run) for word in words)]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1


def test_a_damaged_file_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "embeddings" / "q1.safetensors").write_bytes(b"half")
    assert main(["plot", "embeddings", str(run)]) == 2
    assert "q1.safetensors" in capsys.readouterr().err


def test_the_command_line_does_not_load_matplotlib() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from latentmas.cli import main; main(['plot', '--help']); assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
