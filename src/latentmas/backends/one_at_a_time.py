"""Methods of a backend that no two threads are inside of at once.

A backend keeps queues of jobs between its calls. One that `run` swaps while another thread submits would lose a job.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


class HasLock(Protocol):
    """Has a lock that the thread which holds it may take again."""

    @property
    def _lock(self) -> AbstractContextManager[object]: ...


_Owner = TypeVar("_Owner", bound=HasLock)


def one_at_a_time(
    method: Callable[Concatenate[_Owner, _Given], _Made],
) -> Callable[Concatenate[_Owner, _Given], _Made]:
    """Make a method wait until no other thread is inside of one that is made so; it may call such methods itself."""

    @wraps(method)
    def waiting(owner: _Owner, /, *args: _Given.args, **named: _Given.kwargs) -> _Made:
        with owner._lock:
            return method(owner, *args, **named)

    return waiting
