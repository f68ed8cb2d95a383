"""The error tree: everything the package raises on purpose.

    LatentMASError
    ├── ConfigError (ValueError)        an option, a file or a combination that cannot be run
    │   ├── UnknownNameError            a name nothing answers to; says what is near
    │   └── CapabilityError             the chosen model or backend cannot do it; says which can
    ├── ProgramError (ValueError)       a program that breaks a rule of latent programs
    ├── DataError (ValueError)          a row or target that cannot be read
    ├── MemoryMismatchError (ValueError)  a memory that does not belong to this model or batch
    ├── SampleError (RuntimeError)      one sample cannot go on; the others can
    │   ├── ContextLimitError           prompt + thoughts + new tokens exceed the model's context
    │   └── NumericalError              a thought or a logit is NaN or infinite
    ├── RunStoppedError (RuntimeError)  the whole first batch of a run failed alike
    ├── EngineError (RuntimeError)      an engine did not start, or died and cannot be brought back
    └── StoreError (RuntimeError)       something cannot be written
        └── RunFolderError              the run folder cannot be used for this run

To add one: derive from the nearest class, and put into the message what was given, what was expected and
what to do next. The command line prints the message of any of them in one line and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Final

_LONGEST_SHOWN: Final = 60


class LatentMASError(Exception):
    """Root of the tree. Catch it to catch everything the package raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(LatentMASError, ValueError):
    """An option, a file or a combination of them cannot be run."""


class UnknownNameError(ConfigError):
    """Nothing of this kind answers to the name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        lower = {known.lower(): known for known in names}
        near = [lower[match] for match in difflib.get_close_matches(name.strip().lower(), lower, n=1)]
        hint = f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(names)}"
        super().__init__(f"no {kind} is called {name!r}; {hint}")


class CapabilityError(ConfigError):
    """The chosen model or backend cannot do this."""


class ProgramError(LatentMASError, ValueError):
    """The steps do not form a program that can be run."""


class DataError(LatentMASError, ValueError):
    """A row, a target or a file of samples cannot be read. Never graded as wrong."""


class MemoryMismatchError(LatentMASError, ValueError):
    """A memory does not fit the model, the batch or the dtype it is used with."""


class SampleError(LatentMASError, RuntimeError):
    """One sample cannot go on. Its record holds the message; the other samples do not feel it."""

    exit_code: ClassVar[int] = 1


class ContextLimitError(SampleError):
    """Prompt, thoughts and new tokens together are longer than the model's context."""


class NumericalError(SampleError):
    """A thought or a logit is NaN or infinite."""


class RunStoppedError(LatentMASError, RuntimeError):
    """The whole first batch of a run failed alike; none of it is stored, so that the same run can begin again."""

    exit_code: ClassVar[int] = 1


class EngineError(LatentMASError, RuntimeError):
    """An engine does not start, or dies again and again. What was finished before is stored."""

    exit_code: ClassVar[int] = 1


class StoreError(LatentMASError, RuntimeError):
    """Something cannot be written; what was stored before is kept."""

    exit_code: ClassVar[int] = 1


class RunFolderError(StoreError):
    """The folder cannot be used for this run: it holds another one, is damaged, locked or out of reach."""

    exit_code: ClassVar[int] = 2


def shown(value: object) -> str:
    """Return what was given for the sentence of an error: the value where it is short and plain, and its type."""
    kind = type(value).__name__
    plain = value is None or isinstance(value, str | bytes | int | float | list | tuple | dict)
    return f"{text} ({kind})" if plain and len(text := repr(value)) <= _LONGEST_SHOWN else f"something of type {kind}"
