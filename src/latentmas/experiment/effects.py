"""Which options of a run have no effect in it, and why: one sentence for all that share a reason.

Several methods are often run with one command line, so an option of another method is told and not refused. What is
certainly a mistake is refused by `RunConfig` instead. No sentence is about an option that was not given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from latentmas.agents import AgentGraph, chain, parallel
from latentmas.errors import ConfigError
from latentmas.experiment.config import ARTIFACTS, FILTER_OPTIONS, RunConfig
from latentmas.program import Handover, Join, Program, Think
from latentmas.protocols import Task
from latentmas.samples import AnswerKind

THINKING: Final = ("alignment", "latent_space_realign", "soft_temperature")
LATENT: Final = ("latent_steps", *THINKING)
HANDOVERS: Final = (
    "handover",
    "handover_at",
    "filter",
    *FILTER_OPTIONS,
    "knn_filter",
    "knn_percentage",
    "knn_min_keep",
    "knn_strategy",
    "positions",
    "handover_storage",
)
READING: Final = ("text_mas_context_length", "text_mas_context_tokens")
RUNNING_CODE: Final = ("grading", "code_exec", "allow_unsafe_code_exec", "grading_workers")
OF_A_MODEL: Final = (
    *THINKING,
    "dtype",
    "attn_implementation",
    "revision",
    "trust_remote_code",
    "device",
    "device_map",
)
OF_A_RUN: Final = (
    "dataset",
    "split",
    "max_samples",
    "output_dir",
    "retry_errors",
    "dry_run",
    "save_ids",
    "save_withheld",
    "grading",
    "math_verify",
    "code_exec",
    "allow_unsafe_code_exec",
    "grading_workers",
)
"""Options that a team in Python has no use for: it has no data, no folder and no grades."""

NO_TEMPLATE: Final = "the model has no chat template: prompts are plain text, a line 'Question: ...' and then 'Answer:'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known of a run beside its options, before weights are loaded.

    Attributes:
        task: None outside of a run.
        program: The first one of the first sample.
        samples: How many samples a run has.
        draws: Its filter draws slots at random, or may.
        scripted, local: The model is the backend without one; it is no model of the hub.
        brings_code: The model may come with Python code.
        tied: Input and output embedding of the model are one matrix.
        has_template: The tokenizer has a chat template.
        thinking_matters: The chat template shows whether thinking is enabled.
        thinks_unless_told: What the chat template shows of that where nothing is said; None where that is neither.
        opens_thought: The chat template starts every reply with a thought, so nobody else does.
        confined_by: How code is confined; None where none is run.
        recommended: Options of sampling for which the model folder has a value.
    """

    task: Task | None
    graph: AgentGraph
    program: Program
    samples: int | None = None
    draws: bool = False
    scripted: bool = False
    local: bool = False
    brings_code: bool = True
    tied: bool = False
    has_template: bool = True
    thinking_matters: bool = True
    thinks_unless_told: bool | None = None
    opens_thought: bool = False
    confined_by: str | None = None
    recommended: frozenset[str] = frozenset()

    @property
    def hands_over(self) -> bool:
        return any(isinstance(step, Handover) for step in self.program.flat())

    @property
    def thinks(self) -> bool:
        return any(isinstance(step, Think) and step.steps for step in self.program.flat())

    @property
    def joins(self) -> bool:
        return any(isinstance(step, Join) for step in self.program.flat())


@dataclass(frozen=True, slots=True)
class Idle:
    """Options without effect, for one reason.

    Attributes:
        at_any_value: It is so whatever they say; else only for what they say now.
    """

    names: tuple[str, ...]
    reason: str
    at_any_value: bool = True


def remarks(config: RunConfig, situation: Situation) -> tuple[str, ...]:
    """Return one sentence for each reason why options that were given have no effect; each option is in one of them."""
    sentences = []
    told: set[str] = set()
    for idle in idle_options(config, situation):
        given = [name for name in idle.names if config.gives(name) and name not in told]
        told.update(given)
        if given:
            sentences.append(without_effect(given, idle.reason))
    return (*sentences, *([] if situation.has_template else [NO_TEMPLATE]))


def idle_names(config: RunConfig, situation: Situation) -> frozenset[str]:
    """Return the options that have no effect in a run, whatever they say."""
    return frozenset(name for idle in idle_options(config, situation) if idle.at_any_value for name in idle.names)


def refuse_for_team(config: RunConfig) -> None:
    """Refuse options of a run where there is none.

    Raises:
        ConfigError: One was given.
    """
    for name in OF_A_RUN:
        folder_matters = any(getattr(config, switch) for switch in ARTIFACTS)
        means_something = name == "save_ids" or (name == "output_dir" and folder_matters)
        if config.gives(name) and not means_something:
            raise ConfigError(f"{name!r} is an option of `latentmas run` and means nothing to a Team; leave it out")


def idle_options(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    """Yield the options that have no effect in a run, given or not; what is more to the point comes first."""
    if situation.samples is not None and config.max_samples > situation.samples:
        reason = f"there are no more than {situation.samples} samples"
        yield Idle(("max_samples",), reason, at_any_value=False)
    yield from _of_agents(config, situation)
    if config.method == "latent_mas":
        yield from _of_memory(config, situation)
    yield from _of_text(config, situation)
    yield from _of_grading(situation)
    yield from _of_model(config, situation)
    if config.use_vllm:
        yield from _of_engine(config, situation)


def _of_agents(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if config.method == "baseline":
        team = ("topology", "branch_order", "team", "include_old_prompts", *READING)
        yield Idle((*team, *LATENT, *HANDOVERS), "baseline is one agent alone")
        return
    agents = situation.graph.agents
    if chain(agents) == parallel(agents):
        yield Idle(("topology",), f"a team of {_number(len(agents))} is the same either way")
    if config.method == "text_mas":
        yield Idle(
            ("branch_order", "include_old_prompts", *LATENT, *HANDOVERS), "text_mas hands over text and no memory"
        )
        if not situation.graph.edges:
            yield Idle(READING, "nobody in this team reads another")
    else:
        yield Idle(READING, f"{config.method} hands over memory and no text")


def _of_memory(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if not situation.hands_over:
        if config.control == "no_transfer":
            yield Idle(("branch_order", *LATENT, *HANDOVERS), "with --control no_transfer the last agent works alone")
        else:
            names = ("branch_order", "include_old_prompts", *LATENT, *HANDOVERS)
            yield Idle(names, "a team of one agent hands over nothing")
        return
    if not situation.joins:
        yield Idle(("branch_order",), "nobody in this team hears two agents that work side by side")
    yield from _of_thoughts(config, situation)
    if not any(situation.graph.heard_by(agent.name) for agent in situation.graph.agents[:-1]):
        yield Idle(("handover_at", "filter_at"), "all hand-overs of this team are to the agent that answers")
        if config.handover == "last_agent":
            reason = "whoever hands over in this team has heard nobody, so all of its memory is its own"
            yield Idle(("handover",), reason, at_any_value=False)
    if config.handover == "full":
        yield Idle(("handover_at",), "--handover full cuts nothing")
        if config.filter is None and not config.knn_filter:
            yield Idle(("positions",), "nothing is dropped, so nothing has to be placed")
    yield from _of_filters(config, situation)


def _of_thoughts(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if all(agent.latent_steps is not None for agent in situation.graph.agents[:-1]):
        yield Idle(("latent_steps",), "every agent who thinks has a number of its own in the team file")
    if not situation.thinks:
        yield Idle(THINKING, "nobody thinks")
    elif config.control == "noise":
        yield Idle(THINKING, "with --control noise random vectors take the place of thoughts")
    if config.alignment_name != "soft":
        yield Idle(("soft_temperature",), "it belongs to --alignment soft")
    if config.alignment_name == "ridge" and situation.tied:
        reason = "input and output embedding of this model are one matrix, for which ridge is norm"
        yield Idle(("alignment", "latent_space_realign"), reason, at_any_value=False)


def _of_filters(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if config.filter in {"thoughts", "sink_thoughts"} and config.protect_thoughts is not False:
        yield Idle(
            ("keep", "budget"),
            f"--filter {config.filter} passes on nothing but thoughts, and all of them are protected "
            "(--no_protect_thoughts)",
        )
    if not situation.thinks:
        yield Idle(("protect_thoughts",), "nobody thinks")
    if config.knn_filter and config.protect_newest <= config.knn_min_keep:
        reason = f"--knn_filter keeps the newest {config.knn_min_keep} slots anyway (--knn_min_keep)"
        yield Idle(("protect_newest",), reason, at_any_value=False)
    elif config.knn_filter:
        reason = f"--protect_newest keeps more, the newest {config.protect_newest} slots"
        yield Idle(("knn_min_keep",), reason, at_any_value=False)


def _of_text(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if config.temperature == 0:
        yield Idle(("top_p", "top_k", "min_p"), "temperature 0 is greedy")
        arm = config.control in {"noise", "other_question"}
        shuffled = config.branch_order == "shuffled" and situation.joins
        if not (arm or shuffled or situation.draws):
            yield Idle(("seed",), "temperature 0 is greedy, and nothing else is drawn", at_any_value=False)
    sampled = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    wished = [name for name in sampled if name in situation.recommended]
    if config.sampling == "model" and wished and all(config.gives(name) for name in wished):
        yield Idle(("sampling",), "all that the model folder recommends was given", at_any_value=False)
    if situation.opens_thought:
        yield Idle(("think",), "the chat template starts each reply with a thought itself")
    if not situation.has_template or situation.scripted:
        yield Idle(("enable_thinking",), "the model has no chat template")
    elif not situation.thinking_matters:
        yield Idle(("enable_thinking",), "the model's chat template shows the same with and without thinking")


def _of_grading(situation: Situation) -> Iterator[Idle]:
    task = situation.task
    if task is None:
        return
    if not task.card.withheld:
        yield Idle(("save_withheld",), f"the makers of {task.name} ask for no text to be withheld")
    if task.scorer is not None:
        yield Idle((*RUNNING_CODE, "math_verify"), f"{task.name} grades its answers itself")
        return
    if task.answer_kind is not AnswerKind.NUMBER:
        yield Idle(("math_verify",), f"answers to {task.name} are no numbers")
    if task.answer_kind is not AnswerKind.CODE:
        yield Idle(RUNNING_CODE, f"answers to {task.name} are no code")
    elif situation.confined_by == "off":
        yield Idle(("allow_unsafe_code_exec", "grading_workers"), "with --code_exec off no code is run")
    elif situation.confined_by != "rlimit":
        yield Idle(("allow_unsafe_code_exec",), f"code is confined by {situation.confined_by}")


def _of_model(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if situation.scripted:
        yield Idle(OF_A_MODEL, f"{config.model_name!r} is a backend without a model")
    elif situation.local:
        yield Idle(("revision",), f"{config.model_name!r} is no model of the hub")
    if not situation.brings_code:
        yield Idle(("trust_remote_code",), f"{config.model_name!r} comes without code")
    ridge = config.alignment_name == "ridge" and situation.thinks and not situation.tied
    on_transformers = not config.use_vllm or config.use_second_HF_model
    code = situation.confined_by not in {None, "off"}
    if not (code or (ridge and on_transformers and not situation.scripted and config.control != "noise")):
        yield Idle(("cache_dir",), "nothing of this run is kept there")


def _of_engine(config: RunConfig, situation: Situation) -> Iterator[Idle]:
    if not situation.thinks and config.use_second_HF_model:
        names = ("use_second_HF_model", "device2", "attn_implementation")
        yield Idle(names, "nobody thinks, so vLLM works alone")
    elif not config.use_second_HF_model:
        yield Idle(("device2",), "it belongs to --use_second_HF_model")


def without_effect(names: Sequence[str], reason: str) -> str:
    """Return for example ``--keep and --budget have no effect: ...``."""
    return f"{_listed(names)} {'has' if len(names) == 1 else 'have'} no effect: {reason}"


def _listed(names: Iterable[str]) -> str:
    *most, last = (f"--{name}" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _number(count: int) -> str:
    words: Mapping[int, str] = {1: "one", 2: "two"}
    return words.get(count, str(count))
