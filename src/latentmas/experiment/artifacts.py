"""RunArtifacts: the sink that puts pictures of hand-overs and vectors of agents into a run folder.

    heatmaps/<sample>-<n>-<sender>-to-<receiver>.png            hand-over n of a sample, all layers
    heatmaps/<sample>-<n>-<sender>-to-<receiver>-layer<k>.png   the middle layer alone
    embeddings/<sample>.safetensors                             <turn>.prompt, <turn>.thoughts, <turn>.hidden
    embeddings/<sample>.json                                    which sample, whose turns, what each tensor is
    embeddings/vocabulary.safetensors                           rows of the input embedding, for comparison

This module alone knows these names and formats; `read_embeddings` reads back what the sink wrote. Every file is
replaced as a whole, and a sample that is answered again replaces its files. A picture is drawn while its hand-over
runs, so the seconds of that hand-over contain the drawing.

Shape letters: E hidden size, m thoughts of a turn, n rows of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from latentmas.errors import CapabilityError, ConfigError, DataError, StoreError
from latentmas.experiment.atomic import replace_text, replacing
from latentmas.experiment.config import ARTIFACTS, RunConfig
from latentmas.experiment.models import load_options
from latentmas.program import Handover
from latentmas.protocols import AgentVectors, Capture, Method, Similarity
from latentmas.samples import Sample

if TYPE_CHECKING:
    from latentmas.alignment import EmbeddingSpace

EMBEDDINGS_SCHEMA: Final = 1
VOCABULARY_ROWS: Final = 4096
VOCABULARY: Final = "vocabulary"
LONGEST_SAMPLE: Final = 96
LONGEST_AGENT: Final = 40
"""Characters of a name in a file name. With both agents, a layer and a draft's ending it stays below the 255 bytes
that file systems allow."""
PARTS: Final[Mapping[str, str]] = {
    "prompt": "[E] mean input embedding of the turn's prompt",
    "thoughts": "[m, E] thoughts in the order of thinking, as they were fed back",
    "hidden": "[E] last hidden state of the turn, before alignment",
}

_LAYER: Final = re.compile(r"-layer[0-9]+\.png$")

Floats = NDArray[np.float32]


@final
class RunArtifacts:
    """Writes what a backend produces while it runs. Makes folders when there is something to put into them.

    Args:
        folder: Of the run.
        heatmaps, middle_layer: Draw all layers; draw the middle layer, ``layers // 2``.
        embeddings: Store vectors.
        model_id: Goes into each sample's JSON.
        space: Of the model; where the rows of the vocabulary come from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heatmaps: bool,
        middle_layer: bool,
        embeddings: bool,
        model_id: str,
        space: EmbeddingSpace,
    ) -> None:
        self._folder = folder
        self._heatmaps = heatmaps
        self._middle_layer = middle_layer
        self._embeddings = embeddings
        self._model_id = model_id
        self._space = space
        self._begun: set[str] = set()

    @property
    def wants(self) -> frozenset[Capture]:
        wanted = {Capture.SIMILARITY: self._heatmaps or self._middle_layer, Capture.EMBEDDINGS: self._embeddings}
        return frozenset(capture for capture, is_wanted in wanted.items() if is_wanted)

    def similarity(self, key: str, number: int, similarity: Similarity) -> None:
        """Draw a hand-over.

        Raises:
            StoreError: A picture cannot be written.
        """
        from latentmas.experiment.pictures import heatmap

        sender, receiver = (_safe(agent, LONGEST_AGENT) for agent in (similarity.sender, similarity.receiver))
        stem = f"{sample_name(key)}-{number}-{sender}-to-{receiver}"
        folder = _made(self._folder / "heatmaps")
        if self._heatmaps:
            _write(folder / f"{stem}.png", heatmap(key, similarity))
        if self._middle_layer:
            layer = similarity.cosines.shape[0] // 2
            _write(folder / f"{stem}-layer{layer}.png", heatmap(key, similarity, layer=layer))

    def vectors(self, key: str, agents: Sequence[AgentVectors]) -> None:
        """Store the turns of a sample, behind those that its earlier programs of this session left.

        Raises:
            StoreError: They cannot be written.
        """
        from safetensors.numpy import save

        folder = _made(self._folder / "embeddings")
        if not self._begun:
            self._store_vocabulary(folder)
        path = folder / f"{sample_name(key)}.json"
        # A method may run a program for each agent; only a new session begins a sample anew.
        turns = list(_read_sample(path)[1]) if key in self._begun else []
        self._begun.add(key)
        for vectors in agents:
            prompt, thoughts, hidden = (
                np.ascontiguousarray(tensor.numpy()) for tensor in (vectors.prompt, vectors.thoughts, vectors.hidden)
            )
            turns.append(
                Turn(
                    sample=key,
                    number=len(turns),
                    agent=vectors.agent,
                    prompt=prompt,
                    thoughts=thoughts,
                    hidden=hidden,
                )
            )
        tensors = {f"{turn.number}.{part}": getattr(turn, part) for turn in turns for part in PARTS}
        _write(path.with_suffix(".safetensors"), save(tensors))
        replace_text(path, json.dumps(self._description(key, turns), indent=2) + "\n")

    def _description(self, key: str, turns: Sequence[Turn]) -> dict[str, object]:
        return {
            "schema_version": EMBEDDINGS_SCHEMA,
            "sample": key,
            "model": self._model_id,
            "dtype": "float32",
            "tensors": {f"<turn>.{part}": meaning for part, meaning in PARTS.items()},
            "agents": [
                {
                    "turn": turn.number,
                    "name": turn.agent,
                    "thoughts": len(turn.thoughts),
                    "shapes": {part: list(getattr(turn, part).shape) for part in PARTS},
                }
                for turn in turns
            ],
        }

    def _store_vocabulary(self, folder: Path) -> None:
        """Store at most `VOCABULARY_ROWS` evenly spaced rows: ``rows`` ``[n, E]`` and their token ids, ``ids``."""
        import torch
        from safetensors.numpy import save

        vocabulary = self._space.vocabulary
        count = min(vocabulary, VOCABULARY_ROWS)
        ids = torch.arange(count) * vocabulary // count
        rows = self._space.embed(ids).float().cpu()
        content = {"rows": np.ascontiguousarray(rows.numpy()), "ids": ids.numpy()}
        _write(folder / f"{VOCABULARY}.safetensors", save(content))


def open_sink(config: RunConfig, space: EmbeddingSpace) -> RunArtifacts | None:
    """Return the sink of a run; None where no option asks for pictures or embeddings."""
    sink = RunArtifacts(
        config.folder,
        heatmaps=config.show_heatmaps,
        middle_layer=config.show_heatmaps_singlelayer,
        embeddings=config.save_embeddings,
        model_id=config.model_name,
        space=space,
    )
    return sink if sink.wants else None


def check(config: RunConfig, method: Method, sample: Sample) -> None:
    """Refuse heatmaps where there is nothing to draw, before weights are loaded.

    Raises:
        ConfigError: The method hands nothing over.
        CapabilityError: A prompt cannot be compared with this model's keys.
    """
    options = [name for name in ARTIFACTS[:2] if getattr(config, name)]
    if not options:
        return
    if not any(isinstance(step, Handover) for step in next(method.solve(sample)).flat()):
        raise ConfigError(
            f"--{options[0]} draws hand-overs of memory, and this run has none; it needs --method latent_mas, a team "
            "of two or more, and no --control no_transfer"
        )
    from latentmas.backends.hf.load import load_config

    text = load_config(load_options(config)).get_text_config()
    width, head = text.hidden_size, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if width % head:
        raise CapabilityError(
            f"--{options[0]} folds the hidden size {width} to the width of a head, {head}, which does not divide it; "
            "this model has no such picture"
        )


def unstored(config: RunConfig, answered: Collection[str]) -> tuple[str, ...]:
    """Return which pictures or embeddings that are asked for now were not stored of finished samples, in sentences.

    They are made only while a sample is answered.

    Args:
        answered: Ids of the samples that are finished without an error.
    """
    pictures, stored = _names(config.folder / "heatmaps"), frozenset(_names(config.folder / "embeddings"))
    without = dict.fromkeys(ARTIFACTS, 0)
    for sample in answered:
        name = sample_name(sample)
        layers = {_LAYER.search(picture) is not None for picture in _beginning_with(f"{name}-", pictures)}
        without["show_heatmaps"] += False not in layers
        without["show_heatmaps_singlelayer"] += True not in layers
        without["save_embeddings"] += f"{name}.json" not in stored
    return tuple(
        f"{without[option]} of {len(answered)} finished samples were answered without --{option}, which stores "
        "something only while a sample is answered"
        for option in ARTIFACTS
        if getattr(config, option) and without[option]
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _beginning_with(prefix: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the names that begin so; `names` is sorted."""
    for name in islice(names, bisect_left(names, prefix), None):
        if not name.startswith(prefix):
            return
        yield name


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of an agent, as it was stored.

    Attributes:
        number: Place among the turns of its sample, from 0.
        prompt, hidden: ``[E]``.
        thoughts: ``[m, E]``.
    """

    sample: str
    number: int
    agent: str
    prompt: Floats
    thoughts: Floats
    hidden: Floats

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite; a sample that ended with such an error has some."""
        return all(bool(np.isfinite(getattr(self, part)).all()) for part in PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEmbeddings:
    """What a run folder holds of the space of input embeddings.

    Attributes:
        vocabulary: ``[n, E]`` rows of the input embedding.
        ids: ``[n]`` their token ids.
        turns: Sample after sample, each in the order of its turns.
        samples: How many samples `turns` are of.
        available: How many samples the folder has.
    """

    model_id: str
    vocabulary: Floats
    ids: NDArray[np.int64]
    turns: tuple[Turn, ...]
    samples: int
    available: int


def read_embeddings(run: Path, *, max_samples: int | None = None) -> StoredEmbeddings:
    """Return what ``--save_embeddings`` left in a run folder.

    Args:
        max_samples: At most so many samples, in the order of their file names; None is all.

    Raises:
        ConfigError: There is no such run, or it has no embeddings.
        DataError: A file is damaged, or does not belong to the others.
    """
    folder = run / "embeddings"
    paths = sorted(folder.glob("*.json"), key=_natural)
    if not paths:
        raise ConfigError(f"{run} has no embeddings; give the folder of a run with --save_embeddings")
    file = folder / f"{VOCABULARY}.safetensors"
    tensors = _tensors(file)
    if missing := {"rows", "ids"} - tensors.keys():
        raise DataError(f"{file} has no tensor {min(missing)!r}; repeat the run with --save_embeddings")
    rows = tensors["rows"]
    turns: list[Turn] = []
    model_id = ""
    chosen = paths[:max_samples]
    for path in chosen:
        model_id, own = _read_sample(path)
        if own and own[0].prompt.shape != rows.shape[1:]:
            raise DataError(
                f"{path} is of a model with hidden size {own[0].prompt.shape[0]}, {file.name} of one with "
                f"{rows.shape[1]}; repeat the run in a new folder"
            )
        turns += own
    return StoredEmbeddings(
        model_id=model_id,
        vocabulary=rows,
        ids=tensors["ids"],
        turns=tuple(turns),
        samples=len(chosen),
        available=len(paths),
    )


def sample_name(sample: str) -> str:
    """Return the beginning of a sample's file names: its id, or what is safe of it and a digest of it."""
    return _safe(sample, LONGEST_SAMPLE, taken=frozenset({VOCABULARY}))


def _safe(name: str, longest: int, taken: frozenset[str] = frozenset()) -> str:
    """Return a name without separators, leading dots or anything that is no ASCII letter, digit, ``.``, ``_``, ``-``.

    A name that had to be changed ends with a digest of the old one, so that two names stay two.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:longest].strip(".") or "_"
    if safe == name and name not in taken:
        return name
    return f"{safe}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort ``q10`` behind ``q9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.stem)]


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror}; choose another --output_dir") from error
    return folder


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _read_sample(path: Path) -> tuple[str, tuple[Turn, ...]]:
    """Return the model and the turns of a sample."""
    file = path.with_suffix(".safetensors")
    tensors = _tensors(file)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        turns = tuple(
            Turn(
                sample=description["sample"],
                number=turn["turn"],
                agent=turn["name"],
                **{part: tensors[f"{turn['turn']}.{part}"] for part in PARTS},
            )
            for turn in description["agents"]
        )
        return description["model"], turns
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} and {file.name} do not describe a sample ({type(error).__name__}: {error}); "
            "delete both, or repeat the run with --save_embeddings"
        ) from error


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}; repeat the run with --save_embeddings") from error
