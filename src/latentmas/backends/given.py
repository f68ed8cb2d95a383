"""What every backend checks of the arguments of `run`."""

from __future__ import annotations

from collections.abc import Sequence

from latentmas.errors import ProgramError, shown
from latentmas.program import Program


def seeds_for(programs: Sequence[Program], seeds: Sequence[int] | None) -> Sequence[int]:
    """Return one seed per program: those given, else 0, 1, 2 ...

    Raises:
        ProgramError: Something is no program, or there are more or fewer seeds.
    """
    if not isinstance(programs, Sequence) or isinstance(programs, str):
        raise ProgramError(f"run was given {shown(programs)}; expected a list of programs")
    if strangers := [program for program in programs if not isinstance(program, Program)]:
        raise ProgramError(f"run was given a list with {shown(strangers[0])}; expected programs: Program((step, ...))")
    if seeds is None:
        return range(len(programs))
    if len(seeds) != len(programs):
        raise ProgramError(f"{len(programs)} programs came with {len(seeds)} seeds; give one seed for each")
    return seeds
