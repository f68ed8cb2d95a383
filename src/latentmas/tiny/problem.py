"""A problem of the embedded model's tasks: its numbers, and the choices that fix how it is told."""

from dataclasses import dataclass
from typing import Literal

from latentmas.errors import DataError

Symbol = Literal["+", "-", "*", "/"]

LOWEST = 10
HIGHEST = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step of the chain. `amount` is 2-9 for plus and minus, 2 or 3 for times, 2 for divided by."""

    symbol: Symbol
    amount: int

    def apply(self, value: int) -> int | None:
        """Return the next value, or None where it would be odd to halve or leave 10-99."""
        if self.symbol == "/":
            result = value // self.amount if value % self.amount == 0 else 0
        elif self.symbol == "*":
            result = value * self.amount
        else:
            result = value + self.amount if self.symbol == "+" else value - self.amount
        return result if LOWEST <= result <= HIGHEST else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distractor:
    """A sentence that changes nothing: it counts another thing than the one asked for."""

    after: int
    """Index of the fact it follows."""
    owner: str
    thing: str
    amount: int
    wording: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A chain of operations and how it is told."""

    start: int
    operations: tuple[Operation, ...]
    owners: tuple[str, ...]
    """Who holds the counted things after each fact; a new name means a comparison."""
    thing: str
    wordings: tuple[int, ...]
    """One per fact, then one for the question; taken modulo the number of wordings there are."""
    distractor: Distractor | None
    deal: tuple[int, int, int] | None
    """How many facts planner, critic and refiner hold in the split task; None with a single operation."""

    @property
    def values(self) -> tuple[int, ...]:
        """The start and the value after each operation."""
        values = [self.start]
        for operation in self.operations:
            value = operation.apply(values[-1])
            if value is None:
                raise DataError(f"{signature(self)} leaves {LOWEST}-{HIGHEST} or halves an odd number")
            values.append(value)
        return tuple(values)

    @property
    def result(self) -> int:
        """The answer."""
        return self.values[-1]


def signature(problem: Problem) -> str:
    """Return the numbers of a problem, such as ``12+5*2``; equal ones differ in wording only."""
    return str(problem.start) + "".join(f"{step.symbol}{step.amount}" for step in problem.operations)
