"""From the options of a run to its hand-overs: which filter, with what budget, and whether this model can do it."""

from __future__ import annotations

import json
from collections.abc import Collection

from latentmas.errors import CapabilityError, ConfigError
from latentmas.experiment.config import ARTIFACTS, SINKS, RunConfig
from latentmas.experiment.models import SCRIPTED, load_options
from latentmas.program import Budget, Handover, KeepSpec, Program, Protect, Unit
from latentmas.protocols import Capability


def filter_spec(config: RunConfig) -> KeepSpec | None:
    """Return the filter of a run, checked; None where there is none.

    Raises:
        UnknownNameError: There is no filter of this name.
        ConfigError: It does not take these options.
    """
    if config.knn_filter:
        return _opened(
            KeepSpec(
                name="knn",
                parameters=(("strategy", config.knn_strategy),),
                budget=Budget(unit=Unit.CACHE, amount=config.knn_percentage),
                protect=Protect(
                    sinks=config.protect_sinks or 0,
                    newest=max(config.knn_min_keep, config.protect_newest),
                    thoughts=config.protect_thoughts or False,
                ),
            )
        )
    if config.filter is None:
        return None
    from latentmas.filters._registry import source_digest

    source = source_digest(config.filter)
    parameters = _parameters(config)
    return _opened(
        KeepSpec(
            name=config.filter,
            parameters=tuple(parameters.items()),
            budget=Budget(unit=Unit(config.budget), amount=config.keep),
            protect=Protect(
                sinks=SINKS if config.protect_sinks is None else config.protect_sinks,
                newest=config.protect_newest,
                thoughts=config.protect_thoughts is not False,
            ),
            source=source,
        )
    )


def grain(config: RunConfig) -> str | None:
    """Return what the filter of a run chooses for; None where it has no choice."""
    if (spec := filter_spec(config)) is None:
        return None
    from latentmas.filters._registry import open_filter, takes

    if not takes(spec.name, "grain"):
        return None
    found = getattr(open_filter(spec), "grain", None)
    return None if found is None else str(found)


def draws(config: RunConfig) -> bool:
    """Return whether the filter of a run draws slots, or may: what a stranger's filter does, nobody knows."""
    spec = filter_spec(config)
    if spec is None or spec.source:
        return spec is not None
    from latentmas.filters import Need, needs_of
    from latentmas.filters._registry import open_filter

    return Need.RANDOM in needs_of(open_filter(spec))


def notes(program: Program) -> dict[str, str | None]:
    """Return what a manifest must know: the code of a filter that does not come with an installed package.

    It is that of the code that runs, whatever became of its file.
    """
    sources = [step.keep.source for step in program.flat() if isinstance(step, Handover) and step.keep.source]
    return {"filter_digest": sources[0]} if sources else {}


def check(config: RunConfig, needs: Collection[Capability]) -> None:
    """Refuse what no hand-over of this run can do, before weights are loaded.

    Raises:
        CapabilityError: The model's windows or positions do not allow it.
        ConfigError: Two options contradict each other.
    """
    spec = filter_spec(config)
    grain = "token"
    if spec is not None:
        from latentmas.filters import Need, needs_of
        from latentmas.filters._registry import open_filter

        grain = _grain(config, spec)
        if Need.SENDER_ATTENTION in needs_of(open_filter(spec)) and (
            Capability.JOIN in needs or config.handover != "full"
        ):
            raise ConfigError(
                f"--filter {config.filter} looks at one agent's turn, right before its memory is joined or cut in "
                "another way; use --filter receiver, or a chain with --handover full"
            )
    if grain != "token" and config.handover != "full":
        raise ConfigError(
            f"--filter {config.filter} chooses for each {grain}, so that heads hold different slots, and --handover "
            f"{config.handover} would leave them different numbers of slots; {_coarser(config)}"
        )
    if grain != "token" and (config.show_heatmaps or config.show_heatmaps_singlelayer):
        raise ConfigError(
            f"--filter {config.filter} chooses for each {grain}, which has no heatmap; {_coarser(config)}"
        )
    if config.model_name == SCRIPTED:
        asked = [f" for --{name}" for name in ARTIFACTS if getattr(config, name)]
        if Capability.HANDOVER_FILTER in needs or asked:
            raise CapabilityError(
                f"the backend {SCRIPTED!r} has no keys to look at{''.join(asked[:1])}; choose a model"
            )
        return
    turns = Capability.JOIN in needs or config.positions == "rerotate"
    if not (turns or grain != "token" or config.positions == "published"):
        return
    from latentmas.backends.hf.load import check_handovers

    check_handovers(
        load_options(config),
        turns=turns,
        fine=_coarser(config) if grain != "token" else None,
        published=config.positions == "published",
    )


def _grain(config: RunConfig, spec: KeepSpec) -> str:
    """Return for what a filter chooses slots apart: what it says itself, else what it does where that matters."""
    from latentmas.filters._registry import open_filter

    filter_ = open_filter(spec)
    if (said := getattr(filter_, "grain", None)) is not None:
        return str(said)
    if config.model_name == SCRIPTED or ":" not in spec.name:
        return "token"
    from latentmas.backends.hf.load import memory_shape
    from latentmas.filters._trial import tried_grain

    shape, windowed = memory_shape(load_options(config))
    if config.handover == "full" and not (windowed or config.show_heatmaps or config.show_heatmaps_singlelayer):
        return "token"  # nothing of this run asks how fine it chooses
    found = tried_grain(filter_, shape)
    return "token" if found is None else found.value


def _coarser(config: RunConfig) -> str:
    """Return how slots are chosen for all layers and heads at once."""
    from latentmas.filters._registry import takes

    if config.filter is None or takes(config.filter, "grain"):
        return "give --grain token"
    return "let its scores have the shape rows x slots, or use another filter"


def _parameters(config: RunConfig) -> dict[str, str | int | float | bool]:
    from latentmas.filters._registry import takes

    assert config.filter is not None
    parameters: dict[str, str | int | float | bool] = {}
    for name, value in json.loads(config.filter_options).items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"--filter_options: {name!r} is {value!r}; expected text, a number, true or false")
        parameters[name] = value
    if config.grain is not None:
        if not takes(config.filter, "grain"):
            raise ConfigError(f"filter {config.filter!r} has one way to choose; drop --grain {config.grain}")
        parameters["grain"] = config.grain
    return parameters


def _opened(spec: KeepSpec) -> KeepSpec:
    from latentmas.filters._registry import open_filter

    open_filter(spec)
    return spec
