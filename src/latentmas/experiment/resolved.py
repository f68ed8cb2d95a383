"""What options resolve to, so that a run goes on under another spelling of the command that began it.

Two spellings are the same where they lead to the same records: a default left out or spelled out, the published name of
an option or its own, a path from here or from the root. What an option says that has no effect in a run does not count.
What a digest covers better than a path does (rows, teams) is compared by the digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from latentmas.experiment.config import PLACES, SINKS, RunConfig

Options = Mapping[str, JsonValue]
Environment = Mapping[str, str | int | float | bool | None]

_BY_DIGEST: Final = frozenset({"max_samples", "dataset", "team", "date"})
"""Compared as samples, prompts and the day that prompts show."""
_BY_VALUES: Final = frozenset({"sampling", "latent_space_realign"})
"""What they decide stands in other options."""
_SEEN_WHEN_LOADED: Final = {"dtype": "dtype", "attn_implementation": "attention"}
"""Options whose ``auto`` a loaded model decides, and what its environment calls that."""
_KNN: Final = ("knn_filter", "knn_percentage", "knn_min_keep", "knn_strategy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What options come to in a run, with its model and its task, beyond what they say.

    Attributes:
        idle: Options that have no effect in it, whatever they say.
        unsaid: What an option does that has no value, where the model or a filter decides that.
        tied: Ridge alignment is norm, because the model's two embeddings are one.
    """

    idle: frozenset[str] = frozenset()
    unsaid: Mapping[str, JsonValue] = field(default_factory=dict)
    tied: bool = False


def places(config: RunConfig) -> dict[str, str]:
    """Return the absolute paths of what options name by a path, without symbolic links."""
    named = {name: str(getattr(config, name)) for name in PLACES if getattr(config, name) is not None}
    return {name: str(Path(value).resolve()) for name, value in named.items() if Path(value).exists()}


def differing(
    before: Options,
    now: RunConfig,
    meaning: Meaning,
    *,
    before_places: Mapping[str, str],
    environment: Environment,
) -> Iterator[tuple[str, JsonValue, JsonValue]]:
    """Yield the options that resolve to another value than before: name, value then, value now.

    Args:
        before: The options of the run as they were stored; one that is missing counts as its default.
        before_places: As `places` gave them then.
        environment: Of the backend that began the run; what ``auto`` became. What it becomes now is compared when
            the model is loaded.
    """
    defaults = {name: field.default for name, field in RunConfig.model_fields.items()}
    raw_now = now.identity()
    raw_before = {name: before.get(name, defaults[name]) for name in raw_now}
    one_form = raw_before["knn_filter"] == raw_now["knn_filter"]
    then, value_now = (_resolved(raw, meaning, as_filter=not one_form) for raw in (raw_before, raw_now))
    here = places(now)
    for name, value in value_now.items():
        if name in meaning.idle or name in _BY_DIGEST | _BY_VALUES or then[name] == value:
            continue
        if name in PLACES and name in here and here[name] == before_places.get(name, _place(then[name])):
            continue
        if name in _SEEN_WHEN_LOADED:
            then[name] = environment.get(_SEEN_WHEN_LOADED[name], then[name])
            if value in {"auto", then[name]}:
                continue
        yield name, then[name], value


def _resolved(values: Options, meaning: Meaning, *, as_filter: bool) -> dict[str, JsonValue]:
    """Return options with each thing said in one way.

    Args:
        as_filter: Say what ``--knn_filter`` is in the options of ``--filter``.
    """
    found = {name: meaning.unsaid.get(name) if value is None else value for name, value in values.items()}
    found["alignment"] = values["alignment"] or ("ridge" if values["latent_space_realign"] else "norm")
    if meaning.tied and found["alignment"] == "ridge":
        found["alignment"] = "norm"
    found["revision"] = values["revision"] or "main"
    sinks, thoughts = values["protect_sinks"], values["protect_thoughts"]
    if values["knn_filter"]:
        found |= {"protect_sinks": sinks or 0, "protect_thoughts": thoughts or False}
    elif values["filter"] is not None:
        found |= {
            "protect_sinks": SINKS if sinks is None else sinks,
            "protect_thoughts": thoughts is not False,
        }
    for name in ("filter_options", "vllm_options"):
        found[name] = json.loads(str(values[name]))
    if as_filter:
        found |= _knn_as_filter(found) if values["knn_filter"] else {}
        if found["filter"] == "knn" and isinstance(options := found["filter_options"], dict):
            found["filter_options"] = {"strategy": "top", **options}
        found = {name: value for name, value in found.items() if name not in _KNN}
    return found


def _knn_as_filter(values: Options) -> dict[str, JsonValue]:
    newest = [value for name in ("knn_min_keep", "protect_newest") if isinstance(value := values[name], int)]
    return {
        "filter": "knn",
        "keep": values["knn_percentage"],
        "budget": "cache",
        "protect_newest": max(newest),
        "filter_options": {"strategy": values["knn_strategy"]},
    }


def _place(value: JsonValue) -> str:
    return str(Path(str(value)).resolve())
