"""Control arms: what a number would be if memory did not carry what we believe it carries.

    no_transfer     the last agent alone
    other_question  the last agent on the memory of another sample
    noise           the same program with normal noise in place of thoughts

Each is a pure function from programs to a program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from latentmas.errors import ConfigError
from latentmas.program import Handover, Join, Program, Read, Step, Think, ThoughtSource
from latentmas.samples import Sample


class Control(StrEnum):
    """The control arms, under the names of ``--control``."""

    NONE = "none"
    NO_TRANSFER = "no_transfer"
    OTHER_QUESTION = "other_question"
    NOISE = "noise"


def control(arm: Control, program: Program, donor: Program | None = None) -> Program:
    """Return the control arm of a program.

    Args:
        donor: The other sample's program; needed by ``other_question`` and by nothing else.

    Raises:
        ConfigError: The program hands nothing over, so this arm would measure nothing.
    """
    if arm is Control.NONE:
        return program
    if not any(isinstance(step, Handover) for step in program):
        raise ConfigError(f"--control {arm} needs a team that hands over memory; this program hands over nothing")
    if arm is Control.NOISE:
        return _noisy(program)
    last = _last_read(program)
    if arm is Control.NO_TRANSFER:
        return Program(program.steps[last:])
    if donor is None:
        raise ConfigError("--control other_question needs the program of another sample")
    return Program((*donor.steps[: _last_read(donor)], *program.steps[last:]))


def donors(samples: Sequence[Sample], seed: int) -> Mapping[str, Sample]:
    """Return whose memory each sample is given: a derangement, so nobody gets their own.

    It depends on the seed and on the whole ordered sample set, not on what is left to do, so resuming changes nothing.

    Raises:
        ConfigError: There is no other sample.
    """
    if len(samples) < 2:
        raise ConfigError("--control other_question needs at least 2 samples; there is no other question to take")
    order = list(range(len(samples)))
    # Sattolo's shuffle: a uniformly random single cycle, hence without fixed points.
    for last in range(len(order) - 1, 0, -1):
        draw = hashlib.sha256(f"{seed}/donor/{last}".encode()).digest()
        other = int.from_bytes(draw[:8], "big") % last
        order[last], order[other] = order[other], order[last]
    return {sample.id: samples[order[index]] for index, sample in enumerate(samples)}


def _noisy(program: Program) -> Program:
    """Return the program with noise for every thought, those of branches included."""

    def noisy(step: Step) -> Step:
        match step:
            case Think():
                return replace(step, source=ThoughtSource.NOISE)
            case Join():
                return replace(step, branches=tuple(map(_noisy, step.branches)))
            case _:
                return step

    return Program(tuple(map(noisy, program)))


def _last_read(program: Program) -> int:
    """Return where the last agent's own part begins."""
    return max(number for number, step in enumerate(program) if isinstance(step, Read))
