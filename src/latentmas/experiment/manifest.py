"""Manifest: what a run folder says about the run, so that it can be repeated and safely continued."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

import latentmas
from latentmas.errors import RunFolderError
from latentmas.experiment.atomic import replace_text
from latentmas.experiment.config import EXECUTION_FIELDS, RunConfig
from latentmas.experiment.resolved import Meaning, differing, places
from latentmas.rows import data_digest
from latentmas.samples import Sample

MANIFEST_SCHEMA: Final = 1
MUST_NOT_CHANGE: Final = ("model_fingerprint", "dtype", "attention", "alignment", "stop_tokens", "filter_digest")
"""Keys of `Backend.environment` in which a session must agree with the one that began the run."""
MAY_CHANGE: Final = frozenset({*EXECUTION_FIELDS, "max_samples"})
"""Options that a session stores of its own: how it works, and how far the run shall go."""

Environment = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What decides the records of a run before a model is loaded.

    Attributes:
        prompt_digest, data_digest: Change when any prompt or any sample does.
        sample_ids: Of all samples of the run, also those that are done.
        date: The day that prompts show; None where they show none.
        samples: The samples themselves; without them a run cannot be seen to be the beginning of this one.
        meaning: What options come to in this run.
        filter_digest: Of the code of a filter in a file; None without one.
    """

    config: RunConfig
    prompt_digest: str
    data_digest: str
    sample_ids: tuple[str, ...]
    date: datetime.date | None = None
    samples: tuple[Sample, ...] = ()
    meaning: Meaning = field(default_factory=Meaning)
    filter_digest: str | None = None


class Session(BaseModel):
    """One time the run was worked on: when, by which code, on what.

    Attributes:
        commit: Of the checkout the package ran from, ``-dirty`` where files had changed; None outside of one.
        options: The options that may differ between sessions.
        environment: What the backend says: device, dtype, attention, library versions, model fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: str
    package_version: str
    commit: str | None
    options: dict[str, JsonValue]
    environment: dict[str, str | int | float | bool | None]

    @classmethod
    def now(cls, config: RunConfig, environment: Environment) -> Session:
        """Return a session that begins now, in this process."""
        return cls(
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            package_version=latentmas.__version__,
            commit=checkout_commit(),
            options=config.model_dump(mode="json", include=set(MAY_CHANGE)),
            environment=dict(environment),
        )


class Manifest(BaseModel):
    """Content of ``manifest.json``.

    Attributes:
        created, package_version, commit, environment: Of the session that began the run.
        samples, data_digest: Of the last session; a run may grow.
        date: The day that prompts show, however long the run takes; None where they show none.
        config: All options of that session, defaults included; ``max_samples`` is that of the last one that grew it.
        resumed: The sessions that went on with it, oldest first.
        places: Where what options name by a path was when the run began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = MANIFEST_SCHEMA
    created: str
    package_version: str
    commit: str | None
    seed: int
    samples: int
    prompt_digest: str
    data_digest: str
    date: datetime.date | None = None
    config: dict[str, JsonValue]
    environment: dict[str, str | int | float | bool | None]
    resumed: tuple[Session, ...] = ()
    places: dict[str, str] = {}

    @classmethod
    def new(cls, identity: RunIdentity, environment: Environment) -> Manifest:
        config = identity.config
        session = Session.now(config, environment)
        return cls(
            created=session.started,
            package_version=session.package_version,
            commit=session.commit,
            seed=config.seed,
            samples=len(identity.sample_ids),
            prompt_digest=identity.prompt_digest,
            data_digest=identity.data_digest,
            date=identity.date,
            config=config.model_dump(mode="json"),
            environment=session.environment,
            places=places(config),
        )

    def continued(self, identity: RunIdentity, environment: Environment) -> Manifest:
        """Return the manifest with one more session, which may have more samples."""
        update: dict[str, object] = {"resumed": (*self.resumed, Session.now(identity.config, environment))}
        if len(identity.sample_ids) > self.samples:
            update |= {
                "samples": len(identity.sample_ids),
                "data_digest": identity.data_digest,
                "config": {**self.config, "max_samples": identity.config.max_samples},
            }
        return self.model_copy(update=update)

    def difference(self, identity: RunIdentity) -> str | None:
        """Return why `identity` is not this run, nor more of it, and what to do; None where it is.

        It is the first reason, said of the folder. Options count as what they resolve to; what counts of ``--date`` is
        the day shown.
        """
        if (change := self._change(identity)) is not None:
            return (
                f"holds another run: {change}; choose another --output_dir, or repeat the command of that run to go on "
                "with it"
            )
        had, has = self.samples, len(identity.sample_ids)
        if has < had:
            return (
                f"has {had} samples, and --max_samples {identity.config.max_samples} asks for fewer; give "
                f"--max_samples {had} or more (a run may grow and loses nothing), or choose another --output_dir"
            )
        if has > had and identity.config.control == "other_question":
            return (
                f"has {had} samples, each of which --control other_question gave the memory of another one of them, so "
                f"it cannot grow to {has}; choose another --output_dir, or give --max_samples {had}"
            )
        stored, now = self.environment.get("filter_digest"), identity.filter_digest
        if now is not None and stored not in (None, now):
            return (
                f"was begun with another content of the file of --filter {identity.config.filter} (filter_digest was "
                f"{stored} and is now {now}); restore the file, or choose another --output_dir"
            )
        return None

    def _change(self, identity: RunIdentity) -> str | None:
        for name, stored, value in differing(
            self.config,
            identity.config,
            identity.meaning,
            before_places=self.places,
            environment=self.environment,
        ):
            return f"{name} was {stored!r} and is now {value!r}"
        if self.date is not None and identity.date not in (None, self.date):
            return f"its prompts say that it is {self.date}, and now they would say {identity.date} (--date)"
        if self.prompt_digest != identity.prompt_digest:
            what = _changed("prompt_digest", self.prompt_digest, identity.prompt_digest, "prompts have changed")
            return what + self._elsewhere("team", identity)
        if self.data_digest != identity.data_digest and not self._begins(identity):
            what = _changed("data_digest", self.data_digest, identity.data_digest, "the data has changed")
            return what + self._elsewhere("dataset", identity)
        return None

    def _begins(self, identity: RunIdentity) -> bool:
        """Return whether one of the two has the samples of the other first, and then more, as far as can be seen."""
        had, has = self.samples, len(identity.sample_ids)
        if has < had:  # which of more samples were the first ones, a digest does not say
            return identity.config.max_samples != -1
        return data_digest(identity.samples[:had]) == self.data_digest

    def _elsewhere(self, option: str, identity: RunIdentity) -> str:
        """Return that an option names another file than it did; empty where it does not."""
        stored, now = self.config.get(option), identity.config.identity()[option]
        return f"; {option} was {stored!r} and is now {now!r}" if stored != now else ""

    def write(self, path: Path) -> None:
        replace_text(path, self.model_dump_json(indent=2) + "\n")


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest at `path`; None where there is no such file.

    Raises:
        StoreError: It cannot be read, or another version of the package wrote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as invalid:
        reason = why_unreadable(invalid, "manifest", MANIFEST_SCHEMA)
        raise RunFolderError(f"{path} {reason}; choose another --output_dir") from None


def stored_date(folder: Path) -> datetime.date | None:
    """Return the day that the prompts of a run folder show; None for a new run, and where they show none.

    A manifest that cannot be read is refused where the folder is opened.
    """
    try:
        manifest = read_manifest(folder / "manifest.json")
    except RunFolderError:
        return None
    return None if manifest is None else manifest.date


def _changed(name: str, before: str, now: str, why: str) -> str:
    return f"{name} was {before[:12]} and is now {now[:12]} ({why})"


def why_unreadable(invalid: ValidationError, kind: str, schema: int) -> str:
    """Return why a stored document of this kind cannot be read; another schema version comes before all else."""
    errors = invalid.errors(include_url=False)
    for error in errors:
        if error["loc"] == ("schema_version",):
            return f"was written by schema {error['input']!r}, this version reads {schema}"
    where = ".".join(str(part) for part in errors[0]["loc"])
    return f"is no {kind} of this version: {where or 'the whole'}: {errors[0]['msg']}"


def checkout_commit() -> str | None:
    """Return the commit of the git checkout this package is run from; None outside of one."""
    package = Path(latentmas.__file__).resolve().parent
    checkout = package.parent.parent
    # A virtual environment inside somebody's repository is not a checkout of this package.
    if package.parent.name != "src" or not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no commit yet: then there is none to name
    return answer.stdout.strip()
