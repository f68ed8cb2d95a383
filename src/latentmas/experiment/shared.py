"""SharedBackend: one backend for several threads, whose jobs fill its batches together.

Each thread works with a `Client`, which is a backend to look at: it gives back the outcomes of its own jobs, under the
keys they came with. Whoever wants outcomes while nobody else is waiting for the backend runs it for all; the others
find what is theirs once it returns. No backend has to know of that: one thread at a time is inside of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from threading import Condition, Lock
from typing import Final, final

from latentmas.errors import EngineError
from latentmas.protocols import Aborts, Backend, Capability, Codec, Job, Outcome

PATIENCE_SECONDS: Final = 0.005
"""How long a batch waits, at most, for threads that have work but have not submitted it yet. After each batch all of
them are about to, and without this the first one would run a batch of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class _Flight:
    """A job in the backend.

    Attributes:
        job: As the backend knows it.
        key: As its client knows it.
    """

    client: Client
    job: Job
    key: str


@final
class SharedBackend:
    """A backend that threads share.

    Args:
        backend: Nobody else may submit to it or collect from it meanwhile.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._inside = Lock()
        """Whoever calls the backend holds it. Taken before `_changed`, never while that is held."""
        self._was_interrupted = False
        """Guarded by `_inside`, unlike what stands below."""
        self._changed = Condition()
        """Guards everything below."""
        self._clients: set[Client] = set()
        self._flights: dict[str, _Flight] = {}
        self._abandoned: set[str] = set()
        self._numbers = count(1)
        self._waiting = 0
        self._leader: Client | None = None
        self._is_closed = False

    def client(self) -> Client:
        """Return a backend for one thread; `close` it when it is done, so that nobody waits for it."""
        with self._changed:
            self._check_open()
            client = Client(self, self._backend)
            self._clients.add(client)
            return client

    def close(self) -> None:
        """End the backend once it returns from what it does. Who waits for outcomes gets an `EngineError` at once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        with self._inside:
            self._backend.close()

    def _submit(self, client: Client, job: Job) -> None:
        with self._inside:
            with self._changed:
                self._check_open()
                if client not in self._clients:
                    raise EngineError("this client was closed; take another one from its SharedBackend")
                job, key = replace(job, key=self._name_for(job.key)), job.key
                self._flights[job.key] = _Flight(client, job, key)
            try:
                self._backend.submit(job)
            except BaseException as error:
                with self._changed:
                    del self._flights[job.key]
                    if not isinstance(error, Exception):  # Ctrl-C: the backend may have taken it
                        self._abandoned.add(job.key)
                raise

    def _collect(self, client: Client) -> list[Outcome]:
        """Return outcomes of a client; where there are none yet, wait for them, or run the backend for all.

        Raises:
            EngineError: The backend has lost jobs, or was closed.
            Exception: What the backend raised while a job of this client was in it.
        """
        while True:
            try:
                with self._changed:
                    while not (self._leader is client or self._has_something_for(client)):
                        self._lead_or_wait(client)
                    if self._leader is not client:
                        return self._take_from_mailbox(client)
                    self._wait_for_others()
                self._run_backend()
            finally:
                with self._changed:
                    if self._leader is client:
                        self._leader = None
                        self._changed.notify_all()

    def _lead_or_wait(self, client: Client) -> None:
        """Make the client the one that runs the backend; where there is one already, wait until something changes."""
        if self._leader is None:
            self._leader = client
            return
        self._waiting += 1
        self._changed.notify_all()
        try:
            self._changed.wait()
        finally:
            self._waiting -= 1

    def _wait_for_others(self) -> None:
        """Let those submit who are about to, unless there is enough for a batch."""
        if len(self._flights) < self._backend.capacity:
            self._changed.wait_for(lambda: self._waiting + 1 >= len(self._clients), PATIENCE_SECONDS)

    def _has_something_for(self, client: Client) -> bool:
        nothing_to_wait_for = not any(flight.client is client for flight in self._flights.values())
        return bool(client.mailbox) or client.failure is not None or self._is_closed or nothing_to_wait_for

    def _take_from_mailbox(self, client: Client) -> list[Outcome]:
        if not client.mailbox and client.failure is not None:
            failure, client.failure = client.failure, None
            raise failure
        if not client.mailbox and (lost := self._abandon(client)):
            raise EngineError(
                f"the backend was closed with {_jobs(lost)} of this thread in it; open the team or the model anew"
            )
        outcomes = list(client.mailbox)
        client.mailbox.clear()
        return outcomes

    def _run_backend(self) -> None:
        """Collect once, for everyone."""
        with self._inside:
            try:
                self._abort_abandoned()
                try:
                    outcomes = self._backend.collect()
                except Exception as error:  # noqa: BLE001 - everyone whose job was in it has to hear of it
                    with self._changed:
                        self._fail(error)
                else:
                    with self._changed:
                        self._deal(outcomes)
            except BaseException:  # Ctrl-C in this thread: what was in the batch may be gone, and the others want it
                self._was_interrupted = True
                raise

    def _abort_abandoned(self) -> None:
        """Take back what nobody waits for any more, where the backend can; elsewhere it runs, and is dropped."""
        if isinstance(self._backend, Aborts):
            with self._changed:
                abandoned, self._abandoned = self._abandoned, set()
            for name in abandoned:
                self._backend.abort(name)

    def _deal(self, outcomes: list[Outcome]) -> None:
        """Put outcomes where they belong."""
        if not outcomes:
            self._abandoned.clear()
            if self._was_interrupted:
                self._submit_again()
            elif self._flights:
                lost = _jobs(len(self._flights))
                self._fail(EngineError(f"the backend has lost {lost}: it has nothing left to return"))
        strangers = []
        for outcome in outcomes:
            flight = self._flights.pop(outcome.key, None)
            if flight is not None:
                flight.client.mailbox.append(replace(outcome, key=flight.key))
            elif outcome.key in self._abandoned:
                self._abandoned.discard(outcome.key)
            else:
                strangers.append(outcome.key)
        if strangers:
            self._fail(
                EngineError(
                    f"the backend returned an outcome of job {strangers[0]!r}, which nobody submitted here or which "
                    "has ended; whatever else uses this backend has to be a client of the same SharedBackend"
                )
            )

    def _submit_again(self) -> None:
        """Give jobs to the backend once more that went down with an interrupted batch of somebody else."""
        self._was_interrupted = False
        for flight in self._flights.values():
            self._backend.submit(flight.job)

    def _fail(self, error: Exception) -> None:
        """Let an error reach everyone who has a job in the backend."""
        for name, flight in self._flights.items():
            flight.client.failure = error
            self._abandoned.add(name)
        self._flights.clear()

    def _abandon(self, client: Client) -> int:
        """Give up the jobs of a client; return how many they are."""
        gone = [name for name, flight in self._flights.items() if flight.client is client]
        for name in gone:
            del self._flights[name]
        self._abandoned.update(gone)
        return len(gone)

    def _leave(self, client: Client) -> None:
        with self._changed:
            self._abandon(client)
            self._clients.discard(client)
            self._changed.notify_all()

    def _name_for(self, key: str) -> str:
        """Return a key that no job ever had: an outcome that comes a second time must not pass for another job's."""
        return f"{key}~{next(self._numbers)}"

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the backend was closed; open the team or the model anew")


@final
class Client:
    """What one thread sees of a `SharedBackend`: a backend that has its jobs only.

    Attributes:
        mailbox: Outcomes that nobody has collected yet.
        failure: What the backend raised with jobs of this client in it.
    """

    def __init__(self, shared: SharedBackend, backend: Backend) -> None:
        self._shared = shared
        self._backend = backend
        self.mailbox: deque[Outcome] = deque()
        self.failure: Exception | None = None

    @property
    def model_id(self) -> str:
        return self._backend.model_id

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._backend.capabilities

    @property
    def capacity(self) -> int:
        return self._backend.capacity

    @property
    def codec(self) -> Codec:
        return self._backend.codec

    def submit(self, job: Job) -> None:
        """Take a job, once the backend has returned from what it does.

        Raises:
            CapabilityError: The backend cannot run it.
            EngineError: The backend or this client was closed.
        """
        self._shared._submit(self, job)

    def collect(self) -> list[Outcome]:
        """Return finished jobs of this client; block until there is one. Empty where none of its jobs is in flight.

        Raises:
            EngineError: The backend has lost jobs, or was closed.
        """
        return self._shared._collect(self)

    def environment(self) -> Mapping[str, str | int | float | bool | None]:
        return self._backend.environment()

    def close(self) -> None:
        """Give up the jobs of this client; the backend goes on for the others."""
        self._shared._leave(self)


def _jobs(number: int) -> str:
    return f"{number} job{'s' * (number != 1)}"
