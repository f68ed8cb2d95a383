"""One specimen through the package and through transformers alone; what became of it is a verdict.

Four checks, each with rows of unlike length, alone and as one batch in float64:

    baseline  Read, Write                            against `generate`
    latent    Read, Think, Read, Think, Write        against the whole sequence again at every step
    join      two agents apart, then Read, Think, Write   against branches read where they end up
    rerotate  only thoughts are handed over, moved to 0   against an agent that starts below 0
"""

from __future__ import annotations

import random
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.facts import facts
from zoo.reference import NoReferenceError, Reference, Told
from zoo.specimens import CONTEXT, Specimen, build, causal_types, configuration, default, tokenizer

if TYPE_CHECKING:
    from latentmas.backends.hf.backend import HFBackend
    from latentmas.program import Program
    from latentmas.protocols import AgentVectors

NEW = 5
THOUGHTS = 2
LENGTHS = ((41, 11), (7, 30), (19, 26))
"""Tokens of the two agents of each row; the first row is longer than a window, and rows differ in both."""
TOLERANCE = 1e-2
"""Largest distance of a thought from the reference, as a share of its length. Parts of transformers stay float32."""
CHAOS = 3.0
"""How many times the effect of a shake of `SHAKE` a difference may be."""
TIE = 1e-3
"""Tokens may differ where the two largest logits are nearer than this share of the largest."""
SENSITIVE = 0.02
"""What does not move a logit by this share proves nothing."""


class State(StrEnum):
    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "WRONG"
    ERROR = "ERROR"
    UNKNOWN = "no reference"
    SKIPPED = "not checked"


CHECKS = ("baseline", "latent", "join", "rerotate")


@dataclass(slots=True)
class Found:
    """What came of one check: for a refusal `why` is the sentence, for a fault what differs."""

    state: State
    why: str = ""


@dataclass(slots=True)
class Verdict:
    """What came of a specimen.

    Attributes:
        weights: False where only its configuration could be built, or had to.
        sensitivity: Of the logits to stretched positions, and to another first token; None where nothing ran.
        notes: Facts about the model itself that say why something cannot be right.
        facts: Of a model that is refused: what transformers alone shows; empty where it was not built.
    """

    specimen: Specimen
    found: dict[str, Found] = field(default_factory=dict)
    weights: bool = True
    sensitivity: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)
    facts: str = ""

    @property
    def state(self) -> State:
        """The worst of all checks; REFUSED only where nothing runs."""
        states = [found.state for found in self.found.values()]
        for worst in (State.WRONG, State.ERROR, State.UNKNOWN, State.RIGHT):
            if worst in states:
                return worst
        return State.REFUSED

    def record(self) -> dict[str, Any]:
        """Return everything but the specimen itself, as JSON has it."""
        return {
            "name": self.specimen.name,
            "state": self.state.value,
            "checks": {check: [found.state.value, found.why] for check, found in self.found.items()},
            "weights": self.weights,
            "sensitivity": self.sensitivity,
            "notes": self.notes,
            "facts": self.facts,
        }

    @classmethod
    def from_record(cls, specimen: Specimen, record: dict[str, Any]) -> Verdict:
        """Return what `record` was made from."""
        found = {check: Found(State(state), why) for check, (state, why) in record["checks"].items()}
        return cls(specimen, found, record["weights"], record["sensitivity"], record["notes"], record.get("facts", ""))

    @property
    def fine(self) -> bool:
        """Whether everything is right, or refused before anything ran."""
        return self.state in {State.RIGHT, State.REFUSED}


class _Vectors:
    """Keeps what each agent thought."""

    def __init__(self) -> None:
        from latentmas.protocols import Capture

        self.wants = frozenset({Capture.EMBEDDINGS})
        self.of: dict[str, list[torch.Tensor]] = {}

    def similarity(self, key: str, number: int, similarity: object) -> None:
        """Nothing looks at similarities."""

    def vectors(self, key: str, agents: Sequence[AgentVectors]) -> None:
        self.of[key] = [agent.thoughts for agent in agents if len(agent.thoughts)]


def names_of(specimen: Specimen) -> set[str]:
    """Return what a sentence about a specimen must name: its type, as asked for or as its configuration says."""
    return {specimen.model_type, str(default(specimen.model_type).model_type)}


def judge(specimen: Specimen, *, attention: str = "auto") -> Verdict:
    """Build a specimen, run it both ways and compare."""
    from latentmas import Team
    from latentmas.errors import LatentMASError

    verdict = Verdict(specimen)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        auto = _build(specimen, folder, verdict)
        asked: dict[str, dict[str, Any]] = {
            "baseline": {"method": "baseline"},
            "latent": {},
            "join": {"options": {"topology": "parallel"}},
            "rerotate": {"options": {"positions": "rerotate", "handover": "thoughts"}},
        }
        reference: Reference | None = None
        dtype = _dtype(name, attention, verdict)
        for check in CHECKS:
            given: dict[str, Any] = {"dtype": dtype, "max_new_tokens": NEW, "generate_bs": 4, **asked[check]}
            given["options"] = {**given.get("options", {}), "attn_implementation": attention}
            if check != "baseline":
                given["latent_steps"] = THOUGHTS
            try:
                backend = Team(name, **given).backend
            except LatentMASError as error:
                verdict.found[check] = Found(State.REFUSED, str(error))
                if check == "baseline":  # nothing else can be better
                    verdict.found |= {later: Found(State.SKIPPED) for later in CHECKS[1:]}
                    if verdict.weights:
                        verdict.facts = _facts(folder, auto)
                    break
                continue
            except Exception as error:  # noqa: BLE001 - a specimen may break anything
                verdict.found[check] = Found(State.ERROR, f"at load, {_said(error)}")
                continue
            if reference is None:
                try:
                    reference = _reference(folder, auto, verdict)
                except Exception as error:  # noqa: BLE001 - see above
                    verdict.found[check] = Found(State.UNKNOWN, _said(error))
                    break
            verdict.found[check] = _compare(check, backend, reference)
    return verdict


def _build(specimen: Specimen, folder: Path, verdict: Verdict) -> Any:
    """Write weights where that is possible and needed, else the configuration alone; return who loads it."""
    if specimen.model_type not in causal_types() and _refused_unread(specimen, folder):
        verdict.weights = False
        return None
    try:
        return build(specimen, folder)
    except Exception as error:  # noqa: BLE001 - a type may need packages that are not there
        verdict.weights = False
        verdict.notes.append(f"configuration only: {_said(error)}")
    try:
        config = configuration(specimen)
    except Exception:  # noqa: BLE001 - its defaults may be all there is
        config = default(specimen.model_type)
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return None


def _refused_unread(specimen: Specimen, folder: Path) -> bool:
    """Write the configuration alone, as the type has it by default; return whether that is enough for a refusal."""
    from latentmas import Team
    from latentmas.errors import CapabilityError, ConfigError

    try:
        default(specimen.model_type).save_pretrained(folder)
    except Exception:  # noqa: BLE001 - some cannot be made without knowing what is inside
        return False
    tokenizer().save_pretrained(folder)
    try:
        Team(str(folder), method="baseline")
    except CapabilityError:
        return True
    except ConfigError:
        return False
    return False


def _dtype(folder: str, attention: str, verdict: Verdict) -> str:
    """Return float64, or float32 where a model runs in that alone."""
    from latentmas import Team
    from latentmas.errors import LatentMASError

    def refusal(dtype: str) -> str:
        try:
            Team(folder, method="baseline", dtype=dtype, options={"attn_implementation": attention})
        except LatentMASError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - see `judge`
            return _said(error)
        return ""

    if not (text := refusal("float64")) or not verdict.weights or refusal("float32"):
        return "float64"
    verdict.notes.append(f"refused in float64 only: {text}")
    return "float32"


def _reference(folder: Path, auto: Any, verdict: Verdict) -> Reference:
    reference = Reference(folder, auto)
    ids = prompts(5)[0]
    verdict.sensitivity = reference.sensitivity(ids)
    if (apart := reference.difference(ids)) > TOLERANCE:
        verdict.notes.append(f"input embeddings are not all that token ids say (logits differ by {apart:.2g})")
    if min(verdict.sensitivity) < SENSITIVE:
        verdict.notes.append("insensitive: positions {:.1g}, first token {:.1g}".format(*verdict.sensitivity))
    return reference


def _facts(folder: Path, auto: Any) -> str:
    try:
        return str(facts(Reference(folder, auto), prompts(5)[0][:20]))
    except Exception as error:  # noqa: BLE001 - what cannot be loaded is a fact as well
        return _said(error)


def prompts(seed: int) -> list[tuple[int, ...]]:
    """Return six prompts of the lengths above: two for each row."""
    source = random.Random(seed)
    return [tuple(source.choices(range(4, 396), k=length)) for row in LENGTHS for length in row]


def _compare(check: str, backend: HFBackend, reference: Reference) -> Found:
    """Run all rows in one batch, and each alone where something differs; say what."""
    from latentmas.backends.hf.backend import HFBackend
    from latentmas.errors import CapabilityError

    said = prompts(3)
    rows = list(zip(said[::2], said[1::2], strict=True))
    programs = [_PROGRAMS[check](*row) for row in rows]
    sink = _Vectors()
    watched = HFBackend(backend.model, backend._codec, backend.alignment, batch_size=4, sink=sink)
    try:
        together = _run(watched, programs, sink)
        told = _told(check, reference, rows)
        if isinstance(told, list) and not any(map(_differs, together, told)):
            return Found(State.RIGHT)
        alone = [_run(watched, [program], sink)[0] for program in programs]
    except CapabilityError as error:
        return Found(State.REFUSED, str(error))
    except Exception as error:  # noqa: BLE001 - a fault of the package, which is what we look for
        return Found(State.ERROR, _said(error))
    if isinstance(told, Found):
        if any(map(_differs, together, alone)):
            return Found(State.WRONG, f"a row in a batch is not the row alone; transformers itself: {told.why}")
        return told
    faults = []
    for number, (ours, single, theirs) in enumerate(zip(together, alone, told, strict=True)):
        # Some caches obey a window that the model itself does not have; then `generate` is not of one mind.
        if check == "baseline" and single.written != theirs.written:
            theirs.written = reference.baseline(sum(rows[number], ()), NEW, cached=False)
        with reference.shaken():
            shaken = _TOLD[check](reference, *rows[number]) if check != "baseline" else None
        if text := _differs(ours, single, theirs, shaken):
            faults.append(f"row {number} in a batch is not the row alone: {text}")
        if text := _differs(single, theirs, theirs, shaken):
            faults.append(f"row {number}: {text}")
    return Found(State.WRONG, "; ".join(faults)) if faults else Found(State.RIGHT)


def _told(
    check: str, reference: Reference, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[Told] | Found:
    """Return what transformers says of each row, or why it says nothing."""
    try:
        return [_TOLD[check](reference, *row) for row in rows]
    except NoReferenceError as error:
        return Found(State.SKIPPED, str(error))
    except Exception as error:  # noqa: BLE001 - transformers may not be able to
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Found(State.UNKNOWN, f"{_said(error)} ({Path(where.filename).name}:{where.lineno})")


def _run(backend: HFBackend, programs: Sequence[Program], sink: _Vectors) -> list[Told]:
    from latentmas.protocols import Completion, Job

    sink.of.clear()
    for number, program in enumerate(programs):
        backend.submit(Job(key=str(number), program=program, seed=number))
    outcomes = {}
    while batch := backend.collect():
        outcomes |= {outcome.key: outcome for outcome in batch}
    told = []
    for number in range(len(programs)):
        outcome = outcomes[str(number)]
        if not isinstance(outcome, Completion):
            raise outcome.error
        told.append(Told(sink.of.get(str(number), []), outcome.steps[-1].written))
    return told


def _differs(ours: Told, theirs: Told, calm: Told | None = None, shaken: Told | None = None) -> str:
    """Say what differs; empty where nothing does.

    Args:
        calm: Of the reference.
        shaken: Of the reference after a shake: what differs no more than these two is chaos.
    """
    for number, (one, other) in enumerate(zip(ours.thoughts, theirs.thoughts, strict=True)):
        apart = _apart(one, other)
        allowed = torch.full_like(apart, TOLERANCE)
        if calm is not None and shaken is not None:
            allowed = allowed.maximum(CHAOS * _apart(calm.thoughts[number], shaken.thoughts[number]))
        # Written so that NaN does not pass.
        if not bool((apart <= allowed).all()):
            place = int((~(apart <= allowed)).int().argmax())
            return f"thought {place} of turn {number} is off by {float(apart[place]):.2g}"
    chaotic = calm is not None and shaken is not None and calm.written != shaken.written
    if ours.written != theirs.written and theirs.gap > TIE and not chaotic:
        return f"{list(ours.written)} is written, not {list(theirs.written)}"
    return ""


def _apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.double() - other.double()).norm(dim=-1) / other.double().norm(dim=-1)


def _baseline(first: tuple[int, ...], second: tuple[int, ...]) -> Program:
    from latentmas.program import Program, Read, Write

    return Program((Read(agent="a", tokens=first + second), Write(agent="a", max_new_tokens=NEW)))


def _latent(first: tuple[int, ...], second: tuple[int, ...]) -> Program:
    from latentmas.program import Handover, Program, Read, Think, Write

    return Program(
        (
            Read(agent="a", tokens=first),
            Think(agent="a", steps=THOUGHTS),
            Handover(agent="a"),
            Read(agent="b", tokens=second),
            Think(agent="b", steps=THOUGHTS),
            Write(agent="b", max_new_tokens=NEW),
        )
    )


def _join(first: tuple[int, ...], second: tuple[int, ...]) -> Program:
    from latentmas.program import Handover, Join, Program, Read, Think, Write

    branches = tuple(
        Program((Read(agent=name, tokens=tokens), Think(agent=name, steps=THOUGHTS)))
        for name, tokens in (("a", first), ("b", second))
    )
    return Program(
        (
            Join(branches=branches),
            Handover(agent="b"),
            Read(agent="c", tokens=first[:5]),
            Think(agent="c", steps=THOUGHTS),
            Write(agent="c", max_new_tokens=NEW),
        )
    )


def _rerotate(first: tuple[int, ...], second: tuple[int, ...]) -> Program:
    from latentmas.program import Handover, KeepSpec, Positions, Program, Read, Think, Write

    return Program(
        (
            Read(agent="a", tokens=first),
            Think(agent="a", steps=THOUGHTS),
            Handover(agent="a", keep=KeepSpec(name="thoughts"), positions=Positions.REROTATE),
            Read(agent="b", tokens=second),
            Think(agent="b", steps=THOUGHTS),
            Write(agent="b", max_new_tokens=NEW),
        )
    )


_PROGRAMS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], Program]] = {
    "baseline": _baseline,
    "latent": _latent,
    "join": _join,
    "rerotate": _rerotate,
}
_TOLD: dict[str, Callable[[Reference, tuple[int, ...], tuple[int, ...]], Told]] = {
    "baseline": lambda reference, a, b: Told([], reference.baseline(a + b, NEW)),
    "latent": lambda reference, a, b: reference.program([(a, THOUGHTS), (b, THOUGHTS)], NEW),
    "join": lambda reference, a, b: reference.joined([(a, THOUGHTS), (b, THOUGHTS)], (a[:5], THOUGHTS), NEW),
    "rerotate": lambda reference, a, b: reference.moved((a, THOUGHTS), (b, THOUGHTS), NEW),
}


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


assert 2 * sum(map(sum, LENGTHS)) < CONTEXT
