"""Names become objects here, and nowhere else.

`check` does everything that needs no weights and refuses what cannot work; `Plan.open` loads the model.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import importlib
import pkgutil
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

from latentmas import agents, plugins, prompts, rows, tasks
from latentmas.agents import AgentGraph
from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import CapabilityError, ConfigError, DataError, UnknownNameError
from latentmas.experiment import artifacts, effects, engines, handovers, models
from latentmas.experiment.config import CUSTOM_SUFFIXES, RunConfig
from latentmas.experiment.effects import Situation
from latentmas.experiment.grading import Grading, default_workers
from latentmas.experiment.manifest import stored_date
from latentmas.experiment.model_names import check_model_name, check_weights
from latentmas.experiment.models import SCRIPTED, model_defaults, open_codec
from latentmas.experiment.resolved import Meaning
from latentmas.methods.compile import BranchOrder, HandoverAt, Recipe
from latentmas.methods.controls import Control
from latentmas.program import KeepSpec, Positions, Program, Read, Sampling, Storage
from latentmas.prompts import PromptSet, Use
from latentmas.protocols import Backend, Capability, Codec, Method, Report, Row, Task
from latentmas.row_files import SUFFIXES, read_rows
from latentmas.samples import AnswerKind, Sample

METHODS: Final = ("baseline", "text_mas", "latent_mas")
TASKS_PAGE: Final = "docs/tasks.md"
SMALL_MODEL: Final = 512
"""Hidden size below which a CPU model runs on one thread: starting a second one costs more than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What the runner needs."""

    backend: Backend
    method: Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run in which every name, file and combination was found good; no weights are loaded yet.

    Attributes:
        config: With all defaults filled in.
        ignored_sampling: What the model folder recommends and this run does not take.
        recommends: The model folder says how to sample.
        situation: What decides which options have an effect.
    """

    config: RunConfig
    task: Task
    samples: tuple[Sample, ...]
    graph: AgentGraph
    prompts: PromptSet
    method: Method
    codec: Codec
    data_digest: str
    grading: Grading
    ignored_sampling: Mapping[str, float | int]
    recommends: bool
    situation: Situation

    @property
    def withhold(self) -> bool:
        """The data set's texts stay out of records and terminal."""
        return self.task.card.withheld and not self.config.save_withheld

    @property
    def notes(self) -> dict[str, str | None]:
        """What a manifest must know beside the backend: where the data comes from, and how answers are graded."""
        card, file = self.task.card, self.config.dataset
        hub = " ".join(filter(None, (card.source, card.config)))
        data = {"data": hub if file is None else str(file), "data_revision": card.revision if file is None else None}
        ignored = _listed(self.ignored_sampling) or None
        of_filter = handovers.notes(self.situation.program)
        return {**data, "ignored_sampling": ignored, **of_filter, **self.grading.notes}

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that whoever starts the run should read once."""
        return (*self._remarks_on_sampling, *effects.remarks(self.config, self.situation))

    @property
    def _remarks_on_sampling(self) -> tuple[str, ...]:
        if self.config.sampling == "model" and not self.recommends:
            return ("the model folder recommends no sampling, so --sampling model changes nothing",)
        if not self.ignored_sampling:
            return ()
        return (
            f"the model folder recommends {_listed(self.ignored_sampling)}, which this run ignores; "
            "--sampling model takes it, and an option of the same name decides it",
        )

    @property
    def meaning(self) -> Meaning:
        """What options come to in this run."""
        return Meaning(
            idle=effects.idle_names(self.config, self.situation),
            unsaid={"enable_thinking": self.situation.thinks_unless_told, "grain": handovers.grain(self.config)},
            tied=self.situation.tied,
        )

    @property
    def date(self) -> datetime.date | None:
        """The day that prompts show; None where they show none."""
        return self.codec.printed_date

    @property
    def prompt_digest(self) -> str:
        """Digest of everything agents are told: the prompt set, the team, and how text becomes tokens."""
        # To one agent alone it makes no difference who else might be there.
        graph = self.graph if self.config.method != "baseline" else agents.chain()
        material = f"{self.prompts.digest} {self.codec.digest} {graph.agents!r} {sorted(graph.edges)!r}"
        return hashlib.sha256(material.encode()).hexdigest()

    def first_program(self) -> Program:
        """Return the first program of the first sample."""
        program = next(self.method.solve(self.samples[0]))
        if not self.withhold:
            return program
        return Program(tuple(replace(step, text="") if isinstance(step, Read) else step for step in program))

    def counts(self) -> str:
        """Return for a person what the whole run costs at most."""
        counts = [self.method.count(sample) for sample in self.samples]
        lines = (
            ("samples", len(self.samples)),
            ("prompt tokens, at most", sum(count.prompt_tokens for count in counts)),
            ("thoughts", sum(count.thoughts for count in counts)),
            ("written tokens, at most", sum(count.max_written_tokens for count in counts)),
            ("slots of one sample, at most", max(count.max_slots for count in counts)),
            ("context of one sample, at most", max(count.positions for count in counts)),
        )
        told = [f"{name:<32}{value:>14,}" for name, value in lines]
        if self.config.method != "baseline":
            told.insert(1, f"{'topology':<32}{self.topology:>14}")
        return "\n".join(told)

    @property
    def topology(self) -> str:
        """Who hears whom, in a word."""
        for name, wiring in (("chain", agents.chain), ("parallel", agents.parallel)):
            if self.graph == wiring(self.graph.agents):
                return name
        return "team file"

    def open(self, report: Report = lambda progress: None) -> Experiment:
        """Load the weights.

        Args:
            report: Is told what is being done, now and while programs run.

        Raises:
            ConfigError: They cannot be loaded.
            CapabilityError: The model cannot be run exactly, or the backend lacks what the method needs.
        """
        backend = open_backend(self.config, self.codec, self.method.needs, report)
        if missing := self.method.needs - backend.capabilities:
            raise CapabilityError(
                f"{self.method.name} needs {', '.join(sorted(missing))}, which this backend cannot do"
            )
        if isinstance(size := backend.environment().get("hidden_size"), int) and size < SMALL_MODEL:
            import torch

            torch.set_num_threads(1)
        return Experiment(backend=backend, method=self.method)


def check(config: RunConfig, *, begun: datetime.date | None = None) -> Plan:
    """Check a run as far as that is possible without weights, the cheapest things first.

    Args:
        begun: The day that prompts of a new run show where ``--date`` does not say it; None is today.

    Raises:
        LatentMASError: The first thing that is wrong.
    """
    _check_method(config.method)
    task = find_task(config.task)
    if config.dataset and config.gives("split"):
        raise ConfigError(f"--dataset is one file without splits; drop --split {config.split}")
    config = config.with_defaults({"split": task.splits[0], **task.defaults}, model_defaults(config.model_name))
    grading = grading_for(
        task,
        code_exec=config.code_exec,
        allow_unsafe_code_exec=config.allow_unsafe_code_exec,
        grading=config.grading,
        math_verify=config.math_verify,
        workers=config.grading_workers,
        cache_folder=config.cache_folder,
    )
    prompt_set = prompts.load_prompts(config.prompt)
    _check_wordings(prompt_set, task)
    config = config.with_topology(default_topology(config, prompt_set))
    graph = graph_of(config)
    check_model_name(config.model_name)
    found = _local_rows(config.dataset, task) if config.dataset else task.rows(config.split)
    samples = rows.samples(task, found, None if config.max_samples == -1 else config.max_samples)
    codec = open_codec(config, begun=stored_date(config.folder) or begun)
    recommended = models.recommended_sampling(config)
    config = config.with_sampling(recommended)
    if config.method != "baseline":
        _check_views(samples, graph)
    for index, sample in enumerate(samples):
        _check_target(sample, index, task, grading)
    method = build_method(config, graph, prompt_set, codec, kind=task.answer_kind, task=task.name, samples=samples)
    if config.use_vllm:
        engines.check_vllm(config, method, codec)
    handovers.check(config, method.needs)
    artifacts.check(config, method, samples[0])
    if config.cache_dir is not None and config.cache_dir.exists() and not config.cache_dir.is_dir():
        raise ConfigError(f"--cache_dir {config.cache_dir} is a file; give a folder, which need not be there yet")
    situation = Situation(
        task=task,
        graph=graph,
        program=next(method.solve(samples[0])),
        draws=handovers.draws(config),
        samples=len(samples),
        confined_by=grading.notes.get("code_exec"),
        recommended=frozenset(recommended),
    )
    return Plan(
        config=config,
        task=task,
        samples=samples,
        graph=graph,
        prompts=prompt_set,
        method=method,
        codec=codec,
        data_digest=rows.data_digest(samples),
        grading=grading,
        ignored_sampling=config.ignored_sampling(recommended),
        recommends=bool(recommended),
        situation=models.looked_at(situation, config, codec),
    )


def grading_for(
    task: Task,
    *,
    code_exec: str,
    allow_unsafe_code_exec: bool,
    grading: Literal["strict", "hub"],
    math_verify: bool,
    workers: int,
    cache_folder: Path,
) -> Grading:
    """Return how answers to a task are graded; options are those of a run of the same names.

    Raises:
        CapabilityError: This machine cannot confine code well enough, or math-verify is not installed.
    """
    if task.scorer is not None:
        return Grading(scorer=task.scorer)
    match task.answer_kind:
        case AnswerKind.CHOICE:
            from latentmas.scorers import choice

            return Grading(
                scorer=choice.score,
                check=lambda sample: choice.resolve_target(sample.target, sample.labels, sample.options),
            )
        case AnswerKind.NUMBER:
            from latentmas.scorers import number

            if not math_verify:
                return Grading(scorer=number.score, check=lambda sample: number.parse_target(sample.target))
            from latentmas.scorers import symbolic

            symbolic.check_available()
            return Grading(
                scorer=symbolic.SymbolicScorer(),
                check=lambda sample: number.parse_target(sample.target),
                notes={"grading": "math-verify"},
            )
        case AnswerKind.CODE:
            from latentmas import sandbox
            from latentmas.scorers.code import CodeScorer, check_target

            level = sandbox.choose(code_exec, allow_unsafe=allow_unsafe_code_exec)
            check = check_target if grading == "strict" else lambda sample: None
            if level is sandbox.Level.OFF:
                return Grading(scorer=None, check=check, notes={"code_exec": level.value})
            scorer = CodeScorer(level=level, grading=grading, cache_folder=cache_folder / "references")
            return Grading(
                scorer=scorer,
                check=check,
                workers=workers or default_workers(),
                notes={"code_exec": level.value, "grading": grading},
            )


def build_method(
    config: RunConfig,
    graph: AgentGraph,
    prompt_set: PromptSet,
    codec: Codec,
    *,
    kind: AnswerKind,
    task: str | None = None,
    samples: Sequence[Sample] = (),
) -> Method:
    """Return the method of a run.

    Args:
        task: Its name, for prompts that have words of their own for it.

    Raises:
        ConfigError: It cannot work with this team, hand-over or control arm.
    """
    _check_method(config.method)
    recipe = Recipe(
        graph=graph,
        prompts=prompt_set,
        codec=codec,
        kind=kind,
        max_new_tokens=config.max_new_tokens,
        sampling=Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            repetition_penalty=config.repetition_penalty,
        ),
        latent_steps=config.latent_steps,
        keep=KeepSpec(name=config.handover),
        handover_at=HandoverAt(config.handover_at),
        filter=handovers.filter_spec(config),
        filter_at=HandoverAt(config.filter_at),
        positions=Positions(config.positions),
        storage=Storage(config.handover_storage),
        branch_order=BranchOrder(config.branch_order),
        include_old_prompts=config.include_old_prompts,
        think=config.think,
        seed=config.seed,
        task=task,
    )
    arm = Control(config.control)
    if config.method == "latent_mas":
        from latentmas.methods import latent_mas

        return latent_mas.build(recipe, arm=arm, samples=samples, seed=config.seed)
    if arm is not Control.NONE:
        raise ConfigError(f"--control {arm} changes handed-over memory, and {config.method} hands over none")
    if config.method == "text_mas":
        from latentmas.methods import text_mas

        return text_mas.build(
            recipe,
            context_characters=config.text_mas_context_length,
            context_tokens=config.text_mas_context_tokens,
        )
    from latentmas.methods import baseline

    return baseline.build(recipe)


def find_task(name: str) -> Task:
    """Return the task of this name.

    It is a module in `tasks` or `tiny.tasks`, an entry point ``latentmas.tasks``, or the path of a task file.
    """
    if name.endswith(CUSTOM_SUFFIXES):
        from latentmas.tasks._custom import load_task

        return load_task(Path(name))
    modules, outside = _task_modules(), _outside_tasks()
    if name.lower().endswith(SUFFIXES):
        raise ConfigError(
            f"--task is {name!r}, a file of rows; give it as --dataset, and as --task the name of a task in whose "
            f"columns it is, or a .yaml file that says what its columns are ({TASKS_PAGE})"
        )
    if name in modules:
        task: Task = importlib.import_module(modules[name]).build()
    elif name in outside:
        task = _outside_task(outside[name])
    else:
        raise UnknownNameError("task", name, [*modules, *outside])
    return task


def task_names() -> list[str]:
    """Return the names of all tasks that are installed."""
    return sorted({*_task_modules(), *_outside_tasks()})


def installed_tasks() -> tuple[list[Task], list[str]]:
    """Return all tasks that are installed, and a sentence on each of another package that does not work."""
    found, sentences = [], []
    for name in task_names():
        try:
            found.append(find_task(name))
        except ConfigError as error:
            sentences.append(str(error))
    return found, sentences


def open_backend(
    config: RunConfig, codec: Codec, needs: Collection[Capability], report: Report = lambda progress: None
) -> Backend:
    """Load the weights and return a backend that is known to run this model exactly.

    Args:
        needs: Of the method. The model is tried with it; without thoughts a vLLM engine is a stock one.
        report: Is told what is being done, now and while programs run.
    """
    if config.model_name == SCRIPTED:
        return ScriptedBackend(capacity=config.generate_bs, report=report)
    check_weights(config.model_name)
    if config.use_vllm:
        return engines.open_vllm(config, codec, thinks=Capability.MEMORY in needs, report=report)
    return models.open_transformers(config, codec, needs, report)


def default_topology(config: RunConfig, prompt_set: PromptSet) -> Literal["chain", "parallel"]:
    """Return who hears whom where neither ``--topology`` nor a team file says it."""
    uses = {"text_mas": Use.TEXT, "latent_mas": Use.LATENT}
    if config.team is not None or config.method not in uses:
        return "chain"
    return prompt_set.topology.get(uses[config.method], "chain")


def graph_of(config: RunConfig) -> AgentGraph:
    """Return the team of a run.

    Raises:
        ConfigError: Its file describes none, or says itself who hears whom where ``--topology`` does.
    """
    wiring = {"chain": agents.chain, "parallel": agents.parallel}[config.topology]
    if config.team is not None:
        return agents.load_team(config.team, wiring if config.gives("topology") else None)
    return wiring(None)


def _check_method(name: str) -> None:
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)


def _check_views(samples: Sequence[Sample], graph: AgentGraph) -> None:
    """Refuse split information for agents that are not there: nobody would read it."""
    names = [agent.name for agent in graph.agents]
    for sample in samples:
        if strangers := sorted(sample.views.keys() - set(names)):
            raise ConfigError(
                f"sample {sample.id!r} has a view for {strangers[0]!r}, who is not in the team: {', '.join(names)}"
            )


def _listed(values: Mapping[str, float | int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _check_wordings(prompt_set: PromptSet, task: Task) -> None:
    """Refuse words for a task whose name is nearly that of one there is: nobody would ever read them."""
    known = {task.name, *task_names()}
    for name in sorted(prompt_set.tasks - known):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise ConfigError(f"{prompt_set.source} has words for task {name!r}; did you mean {near[0]!r}?")


def _local_rows(path: Path, task: Task) -> Sequence[Row]:
    """Return the rows of ``--dataset``, which must have the columns of the task.

    Raises:
        ConfigError: It names no file but a data set of the hub.
        DataError: The file cannot be read, or is in other columns.
    """
    named, own = str(path), f"in its own columns it needs a task file: --task FILE.yaml ({TASKS_PAGE})"
    of_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named) or named.startswith(("hf:", "http:", "https:"))
    if of_hub and not path.exists() and not named.lower().endswith(SUFFIXES):
        raise ConfigError(
            f"--dataset is {named!r}, and takes a local file of rows; without it {task.name} comes from the hub "
            f"({task.card.source}), and another data set of the hub has to be saved as a file first; {own}"
        )
    if path.is_dir():
        raise ConfigError(f"--dataset {named} is a folder; give one file in it, such as {_first_file(path)}")
    found = read_rows(path)
    try:
        task.sample(found[0], 0)
    except DataError as error:
        # Only where a column is missing: what is in the columns is told row by row.
        if not re.search(r"has (no column|neither the columns)", str(error)):
            raise
        # Some tasks say themselves which columns they read.
        told = all(column in str(error) for column in task.card.columns)
        listed = "" if told else f" ({', '.join(task.card.columns)})"
        raise DataError(
            f"{error}; rename its columns to those of {task.name}{listed}, or write a task file for columns of your "
            f"own: --task FILE.yaml ({TASKS_PAGE})"
        ) from error
    return found


def _first_file(folder: Path) -> str:
    files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES))
    return str(files[0]) if files else "rows.jsonl"


def _check_target(sample: Sample, index: int, task: Task, grading: Grading) -> None:
    try:
        grading.check(sample)
    except DataError as error:
        column = "column 'test'" if task.answer_kind is AnswerKind.CODE else "its target"
        raise DataError(f"{task.name} row {index} ({sample.id}), {column}: {error}") from error


def _task_modules() -> dict[str, str]:
    import latentmas.tiny.tasks as tiny_tasks

    return _modules(tasks, tiny_tasks)


def _outside_tasks() -> dict[str, EntryPoint]:
    return plugins.plugins("latentmas.tasks")


def _outside_task(entry: EntryPoint) -> Task:
    build = plugins.load("task", entry)
    try:
        task: Task = build()  # type: ignore[operator]
        # Whatever lists tasks looks at these; one that lacks them is no task.
        _ = task.name, task.answer_kind.value, task.defaults, task.scorer, task.rows, task.sample
        _ = task.card.rows[task.splits[0]], task.card.licence, task.card.gated, task.card.withheld
    except (Exception, SystemExit) as error:  # code of strangers
        raise plugins.broken("task", entry, error) from error
    return task


def _modules(*packages: ModuleType) -> dict[str, str]:
    """Return the public modules of packages: name to full name."""
    return {
        module.name: f"{package.__name__}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }
