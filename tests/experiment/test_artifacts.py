"""Artifacts of a run folder: which files there are, what is in them, and what refuses to be drawn."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from latentmas.alignment import EmbeddingSpace
from latentmas.cli import main
from latentmas.errors import CapabilityError, ConfigError, DataError, StoreError
from latentmas.experiment import compose, pictures
from latentmas.experiment.artifacts import RunArtifacts, read_embeddings, sample_name
from latentmas.experiment.config import RunConfig
from latentmas.experiment.store import read_records
from latentmas.program import SlotKind
from latentmas.protocols import AgentVectors, Capture, Similarity

OPTIONS = {"model_name": "tiny", "task": "tiny_split", "max_samples": "2", "temperature": "0", "latent_steps": "3"}
PICTURES = ("--show_heatmaps", "--show_heatmaps_singlelayer", "--save_embeddings")
AGENTS = ("planner", "critic", "refiner", "judger")
HANDOVERS = ("0-planner-to-critic", "1-critic-to-refiner", "2-refiner-to-judger")
HOSTILE = ("../x", "a/b", "..", "", "q" * 4000, "日本語", "a\nb", "vocabulary", "\udc80", ".hidden", "C:\\x", "a b")


def run(folder: Path, *words: str, method: str = "latent_mas") -> int:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    return main(["run", "--method", method, *options, "--output_dir", str(folder), *words])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def has_colour(png: bytes, colour: str) -> bool:
    """Whether a stretch of at least two by six pixels has exactly this colour; legends have such, too."""
    rgb = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return int((pixels(png) == rgb).all(axis=2).sum()) >= 12


def looked_at(
    slots: int,
    *,
    layers: int = 4,
    positions: Sequence[int] | None = None,
    kind: SlotKind = SlotKind.PROMPT,
    names: tuple[str, ...] = ("planner",),
) -> Similarity:
    return Similarity(
        sender=names[-1],
        receiver="judger",
        cosines=torch.linspace(-0.5, 0.75, layers * slots).reshape(layers, slots),
        positions=tuple(range(slots)) if positions is None else tuple(positions),
        agents=tuple(names[slot * len(names) // slots] for slot in range(slots)),
        kinds=(int(kind),) * slots,
    )


def sink_on(folder: Path, *, heatmaps: bool = True, embeddings: bool = True, vocabulary: int = 9) -> RunArtifacts:
    weight = torch.arange(vocabulary * 4.0).reshape(vocabulary, 4)
    space = EmbeddingSpace(
        embed=lambda ids: weight[ids],
        head=weight,
        logits=lambda hidden: hidden @ weight.T,
        vocabulary=vocabulary,
        tied=True,
        compute=torch.float32,
    )
    return RunArtifacts(
        folder, heatmaps=heatmaps, middle_layer=heatmaps, embeddings=embeddings, model_id="m", space=space
    )


def vectors(agent: str, thoughts: int = 2, width: int = 4) -> AgentVectors:
    return AgentVectors(
        agent=agent, prompt=torch.ones(width), thoughts=torch.ones(thoughts, width), hidden=torch.zeros(width)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that can be drawn or stored."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert run(folder, *PICTURES, "--save_ids") == 0
    return folder


def test_every_handover_of_every_sample_has_a_picture_of_all_layers_and_of_the_middle_one(folder: Path) -> None:
    samples = ("test-0000", "test-0001")
    expected = {f"{sample}-{rest}{layer}.png" for sample in samples for rest in HANDOVERS for layer in ("", "-layer2")}
    assert names(folder / "heatmaps") == expected
    for path in (folder / "heatmaps").iterdir():
        height, width, _ = pixels(path.read_bytes()).shape
        assert 1000 < width < 3000
        assert 200 < height < 1500
        assert has_colour(path.read_bytes(), "#1B1B1B")  # thoughts


def test_embeddings_have_the_shapes_their_description_says(folder: Path) -> None:
    model = json.loads((Path(__file__).parents[2] / "src/latentmas/tiny/model/config.json").read_text())
    width = model["hidden_size"]
    for sample in ("test-0000", "test-0001"):
        tensors = load_file(folder / "embeddings" / f"{sample}.safetensors")
        description = json.loads((folder / "embeddings" / f"{sample}.json").read_text())
        assert description["sample"] == sample
        assert description["model"] == "tiny"
        assert [agent["name"] for agent in description["agents"]] == list(AGENTS)
        for turn, agent in enumerate(description["agents"]):
            thoughts = 0 if agent["name"] == "judger" else 3
            assert agent["thoughts"] == thoughts
            assert agent["shapes"] == {"prompt": [width], "thoughts": [thoughts, width], "hidden": [width]}
            for part, shape in agent["shapes"].items():
                assert list(tensors[f"{turn}.{part}"].shape) == shape
                assert tensors[f"{turn}.{part}"].dtype == np.float32
        assert len(tensors) == 3 * len(AGENTS)


def test_a_prompt_is_the_mean_of_the_vocabulary_rows_of_its_tokens(folder: Path) -> None:
    vocabulary = load_file(folder / "embeddings" / "vocabulary.safetensors")
    assert vocabulary["ids"].tolist() == list(range(len(vocabulary["rows"])))  # a small vocabulary is all there
    for record in read_records(folder / "records.jsonl"):
        tensors = load_file(folder / "embeddings" / f"{record.id}.safetensors")
        for turn, agent in enumerate(record.agents):
            assert agent.prompt_ids is not None
            expected = vocabulary["rows"][list(agent.prompt_ids)].mean(axis=0)
            np.testing.assert_allclose(tensors[f"{turn}.prompt"], expected, atol=1e-5)


def test_a_second_run_stores_the_same_and_another_batch_size_the_same_but_for_rounding(
    folder: Path, tmp_path: Path
) -> None:
    assert run(tmp_path / "again", *PICTURES) == 0
    assert run(tmp_path / "alone", "--save_embeddings", "--generate_bs", "1") == 0
    assert names(tmp_path / "alone" / "embeddings") == names(folder / "embeddings")
    for path in folder.glob("embeddings/*"):
        assert (tmp_path / "again" / "embeddings" / path.name).read_bytes() == path.read_bytes()
        if path.suffix == ".safetensors":
            alone = load_file(tmp_path / "alone" / "embeddings" / path.name)
            for name, tensor in load_file(path).items():
                np.testing.assert_allclose(alone[name], tensor, atol=1e-4)
    for path in folder.glob("heatmaps/*"):
        assert (tmp_path / "again" / "heatmaps" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "alone" / "heatmaps").exists()


def test_pictures_can_be_asked_for_when_a_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder) == 0
    assert names(folder).isdisjoint({"heatmaps", "embeddings"})
    records = folder / "records.jsonl"
    both = [record.text for record in read_records(records)]
    [first, _] = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(first)
    assert run(folder, *PICTURES) == 0
    assert [record.text for record in read_records(records)] == both
    assert names(folder / "embeddings") == {"test-0001.json", "test-0001.safetensors", "vocabulary.safetensors"}
    assert len(names(folder / "heatmaps")) == 2 * len(HANDOVERS)


def test_text_mas_stores_the_turn_of_each_of_its_programs_once(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "--save_embeddings", "--max_new_tokens", "8", method="text_mas") == 0
    assert [(turn.sample, turn.number, turn.agent) for turn in read_embeddings(tmp_path / "run").turns] == [
        (sample, number, agent) for sample in ("test-0000", "test-0001") for number, agent in enumerate(AGENTS)
    ]


def test_a_new_session_replaces_what_a_sample_had(tmp_path: Path) -> None:
    for _ in range(2):
        sink = sink_on(tmp_path)
        sink.vectors("q", [vectors("planner")])
        sink.vectors("q", [vectors("judger", thoughts=0)])
        assert [turn.agent for turn in read_embeddings(tmp_path).turns] == ["planner", "judger"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("baseline", ["--show_heatmaps"]),
        ("text_mas", ["--show_heatmaps_singlelayer"]),
        ("latent_mas", ["--show_heatmaps", "--control", "no_transfer"]),
    ],
)
def test_what_hands_nothing_over_has_no_heatmaps(
    method: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", *words, method=method) == 2
    message = capsys.readouterr().err
    assert f"{words[0]} draws hand-overs of memory, and this run has none; it needs --method latent_mas" in " ".join(
        message.split()
    )
    assert not (tmp_path / "run").exists()


def test_a_model_whose_heads_do_not_divide_its_width_is_refused_before_weights_are_read(
    model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.glob("*.json*"):
        shutil.copy(file, tmp_path)
    for file in model_folder.glob("*.jinja"):
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": 20}))
    options = {"method": "latent_mas", "model_name": str(tmp_path), "task": "tiny_split", "max_samples": 2}
    compose.check(RunConfig.from_options({**options, "save_embeddings": True}))
    with pytest.raises(CapabilityError, match=r"--show_heatmaps folds the hidden size 48 .* a head, 20"):
        compose.check(RunConfig.from_options({**options, "show_heatmaps": True}))


@pytest.mark.parametrize("sample", HOSTILE)
def test_no_sample_id_leaves_the_run_folder(sample: str, tmp_path: Path) -> None:
    sink = sink_on(tmp_path / "run")
    sink.similarity(sample, 0, looked_at(3, names=("../planner", "criti/c" * 40)))
    sink.vectors(sample, [vectors("../planner")])
    sink.vectors(sample, [vectors("critic")])
    assert names(tmp_path) == {"run"}
    assert names(tmp_path / "run") == {"heatmaps", "embeddings"}
    assert len(names(tmp_path / "run" / "heatmaps")) == 2
    assert len(names(tmp_path / "run" / "embeddings")) == 3
    assert [turn.sample for turn in read_embeddings(tmp_path / "run").turns] == [sample, sample]


@given(st.lists(st.text(max_size=110), unique=True, max_size=6))
def test_names_of_samples_are_safe_and_stay_apart(samples: list[str]) -> None:
    found = [sample_name(sample) for sample in samples]
    assert len(set(found)) == len(samples)
    for name in found:
        assert 0 < len(name) <= 110
        assert name.isascii()
        assert not set(name) & set("/\\:\0\n ")
        assert not name.startswith(".")


def test_ordinary_sample_ids_are_file_names_as_they_are() -> None:
    assert sample_name("test-0001") == "test-0001"


@pytest.mark.parametrize(
    ("heatmaps", "embeddings", "wants"),
    [(True, False, {Capture.SIMILARITY}), (False, True, {Capture.EMBEDDINGS}), (False, False, set())],
)
def test_a_sink_wants_what_was_asked_for(heatmaps: bool, embeddings: bool, wants: set[Capture], tmp_path: Path) -> None:
    assert sink_on(tmp_path, heatmaps=heatmaps, embeddings=embeddings).wants == wants


@pytest.mark.parametrize(("vocabulary", "last"), [(9, 8), (4096, 4095), (10000, 9997)])
def test_rows_of_the_vocabulary_are_evenly_spaced(vocabulary: int, last: int, tmp_path: Path) -> None:
    sink_on(tmp_path, vocabulary=vocabulary).vectors("q", [vectors("planner")])
    stored = load_file(tmp_path / "embeddings" / "vocabulary.safetensors")
    ids = stored["ids"]
    assert len(ids) == min(vocabulary, 4096)
    assert (ids[0], ids[-1]) == (0, last)
    assert np.ptp(np.diff(ids)) <= 1
    np.testing.assert_array_equal(stored["rows"][:, 0], ids * 4.0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "embeddings").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot make .*embeddings"):
        sink_on(tmp_path).vectors("q", [vectors("planner")])


def test_a_picture_that_cannot_be_written_ends_the_run_and_not_a_sample(tmp_path: Path) -> None:
    words = "run --method latent_mas --model_name tiny --task tiny_split --temperature 0 --latent_steps 1"
    command = [*words.split(), "--output_dir", str(tmp_path / "run"), "--max_samples"]
    assert main([*command, "1"]) == 0
    (tmp_path / "run" / "heatmaps").write_text("in the way")
    assert main([*command, "2", "--show_heatmaps"]) == 1
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 1


def test_what_is_stored_only_while_a_sample_is_answered_is_refused_for_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--save_embeddings") == 0
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert run(folder, "--save_embeddings") == 0, "it has all of them"
    for option in ("--show_heatmaps", "--show_heatmaps_singlelayer"):
        capsys.readouterr()
        assert run(folder, "--save_embeddings", option) == 2
        err = capsys.readouterr().err
        assert f"2 of 2 finished samples were answered without {option}, which stores something only while" in err
        assert len(err.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_goes_on_says_which_samples_will_have_no_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--show_heatmaps") == 0
    records = folder / "records.jsonl"
    records.write_bytes(records.read_bytes().splitlines(keepends=True)[0])
    capsys.readouterr()
    assert run(folder, *PICTURES) == 0
    err = capsys.readouterr().err
    for option in PICTURES:
        said = f"1 of 1 finished samples were answered without {option}, which stores something only while"
        assert (said in err) == (option != "--show_heatmaps")


def test_a_run_without_embeddings_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--save_embeddings"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"agents": [{"turn": 7}]}', b"\xff"])
def test_a_damaged_description_is_named(content: bytes, tmp_path: Path) -> None:
    sink_on(tmp_path).vectors("q", [vectors("planner")])
    (tmp_path / "embeddings" / "q.json").write_bytes(content)
    with pytest.raises(DataError, match=r"q\.json"):
        read_embeddings(tmp_path)


def test_samples_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sink = sink_on(tmp_path)
    for sample in ("q10", "q9", "q1"):
        sink.vectors(sample, [vectors("planner")])
    stored = read_embeddings(tmp_path, max_samples=2)
    assert [turn.sample for turn in stored.turns] == ["q1", "q9"]
    assert (stored.samples, stored.available) == (2, 3)


def test_dropped_slots_are_gaps_where_they_were() -> None:
    whole = pictures.heatmap("q", looked_at(12))
    pruned = pictures.heatmap("q", looked_at(12, positions=[*range(6), *range(18, 24)]))
    assert not has_colour(whole, pictures.GAP)
    image = (pixels(pruned) == [int(pictures.GAP[at : at + 2], 16) for at in (1, 3, 5)]).all(axis=2)
    middle = image[:, image.shape[1] // 2]
    assert middle.sum() > 0.3 * len(middle)  # half of the 24 positions, in the middle of the map


def test_layers_are_drawn_from_bottom_to_top_and_negative_cosines_are_blue() -> None:
    similarity = looked_at(10, layers=2)
    similarity.cosines[0], similarity.cosines[1] = -0.8, 0.8
    image = pixels(pictures.heatmap("q", similarity)).astype(int)
    line = image[:, image.shape[1] // 3]  # from top to bottom, away from names and numbers
    red = np.flatnonzero(line[:, 0] > line[:, 2] + 100)
    blue = np.flatnonzero(line[:, 2] > line[:, 0] + 100)
    assert len(red) > 50
    assert len(blue) > 50
    assert red.max() < blue.min()


def test_one_layer_takes_the_whole_scale() -> None:
    similarity = looked_at(10)
    similarity.cosines[2] = torch.linspace(0.30, 0.31, 10)
    image = pixels(pictures.heatmap("q", similarity, layer=2))
    line = image[image.shape[0] - 120]  # from left to right, through the map
    assert {tuple(line[130].tolist()), tuple(line[1040].tolist())} == {(68, 1, 84), (253, 231, 36)}  # ends of viridis


def test_positions_that_collide_are_drawn_as_slots_and_the_axis_says_so() -> None:
    plain = pixels(pictures.heatmap("q", looked_at(12)))
    colliding = pixels(pictures.heatmap("q", looked_at(12, positions=[0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8])))
    axis = 100  # pixels at the bottom
    np.testing.assert_array_equal(colliding[:-axis], plain[:-axis])
    assert (colliding[-axis:] != plain[-axis:]).any()


@pytest.mark.parametrize("slots", [1, 2, 21, 20_000])
@pytest.mark.parametrize("layer", [None, 2])
def test_pictures_stay_within_bounds_however_long_the_memory(slots: int, layer: int | None) -> None:
    png = pictures.heatmap("q", looked_at(slots, names=("a", "b", "c")[: min(slots, 3)]), layer=layer)
    height, width, _ = pixels(png).shape
    assert 1000 < width < 3000
    assert 200 < height < 1500


def test_a_few_thoughts_among_many_slots_are_seen() -> None:
    long = looked_at(20_000)
    kinds = [0] * 20_000
    kinds[10_000:10_020] = [int(SlotKind.THOUGHT)] * 20
    drawn = Similarity(
        sender=long.sender,
        receiver=long.receiver,
        cosines=long.cosines,
        positions=long.positions,
        agents=long.agents,
        kinds=tuple(kinds),
    )
    middle = pixels(pictures.heatmap("q", drawn))[60:200, 600:-600]
    assert ((middle == 0x1B).all(axis=2)).sum() >= 12


def test_slots_of_any_order_are_drawn_where_they_are() -> None:
    similarity = looked_at(8)
    turned: Any = {name: tuple(reversed(getattr(similarity, name))) for name in ("positions", "agents", "kinds")}
    backwards = Similarity(
        sender=similarity.sender, receiver=similarity.receiver, cosines=similarity.cosines.flip(1), **turned
    )
    assert pictures.heatmap("q", backwards) == pictures.heatmap("q", similarity)


@pytest.mark.parametrize("shape", [(40, 6), (5, 30), (900, 700), (650, 1000)])
def test_the_plane_is_that_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(1).normal(size=shape)
    vectors[:, :2] *= 4, 3
    centre = vectors[:3].mean(axis=0)
    plane = pictures.principal_plane(vectors, centre)
    _, values, directions = np.linalg.svd(vectors - centre, full_matrices=False)
    np.testing.assert_allclose(plane.shares, values[:2] ** 2 / (values**2).sum())
    np.testing.assert_allclose(np.abs((plane.directions * directions[:2]).sum(axis=1)), 1.0)
    np.testing.assert_allclose(plane.shown(vectors), sum(plane.shares))


def test_vectors_on_a_line_have_one_direction() -> None:
    plane = pictures.principal_plane(np.outer(np.arange(5.0), np.ones(3)), np.zeros(3))
    assert plane.shares[0] == pytest.approx(1)
    assert plane.shares[1] == pytest.approx(0)
    assert np.isfinite(plane.directions).all()


def test_the_nearest_row_is_found_among_the_others() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    np.testing.assert_allclose(pictures.nearest_cosines(rows, rows), 1.0)
    np.testing.assert_allclose(pictures.nearest_cosines(rows, rows, others=True), 0.5**0.5)
