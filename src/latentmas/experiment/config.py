"""RunConfig: every option of a run, with its range, its default and its help text.

The one source of truth for options: the command line is generated from these fields, the manifest stores
them, and resuming compares them. This is the only module that reads environment variables.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, final, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from latentmas.errors import ConfigError, LatentMASError, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """What the command line and resuming know about a field.

    Attributes:
        panel: Heading under which ``--help`` shows it.
        execution: It says how or where work is done, never what comes out; so it may change when resuming.
        says_default: The description says what happens without the option, which is not its default alone.
    """

    panel: str
    execution: bool = False
    says_default: bool = False


def _underscored(value: object) -> object:
    return value.replace("-", "_") if isinstance(value, str) else value


def file_or_name(value: object) -> object:
    """Return a name with underscores; the path of a YAML file stays as it is."""
    return value if isinstance(value, str) and value.endswith(CUSTOM_SUFFIXES) else _underscored(value)


def _day(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except ValueError as error:
        raise ValueError("it should be a day, written YYYY-MM-DD") from error


def _json_object(value: str) -> str:
    try:
        content = json.loads(value)
    except ValueError as error:
        raise ValueError(f"it should be a JSON object: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("it should be a JSON object, in braces")
    return value


def _all_or_some(value: int) -> int:
    if value == -1 or value >= 1:
        return value
    raise ValueError("it should be -1 (all) or at least 1")


Dashed = BeforeValidator(_underscored)
"""Names may be written with dashes: ``last-agent`` is ``last_agent``."""

CUSTOM_SUFFIXES: Final = (".yaml", ".yml")
"""The name of a task or of a prompt set that ends like this is the path of a file."""

_WHAT = "What is run"
_TEAM = "Agents"
_LATENT = "Latent collaboration"
_HANDOVER = "Hand-overs"
_PICTURES = "Pictures and embeddings"
_TEXT = "Text and sampling"
_GRADING = "Grading"
_MODEL = "Model"
_ENGINE = "vLLM"
_RUN = "Run and results"

WHAT: Final = Flag(panel=_WHAT)
TEAM: Final = Flag(panel=_TEAM)
LATENT: Final = Flag(panel=_LATENT)
HANDOVER: Final = Flag(panel=_HANDOVER)
HANDOVER_SAYS: Final = Flag(panel=_HANDOVER, says_default=True)
PICTURES: Final = Flag(panel=_PICTURES, execution=True)
TEXT: Final = Flag(panel=_TEXT)
MODEL: Final = Flag(panel=_MODEL)
PLACE: Final = Flag(panel=_MODEL, execution=True)
GRADING: Final = Flag(panel=_GRADING)
CHECKING: Final = Flag(panel=_GRADING, execution=True)
ENGINE: Final = Flag(panel=_ENGINE)
ENGINE_PLACE: Final = Flag(panel=_ENGINE, execution=True)
RESULTS: Final = Flag(panel=_RUN)
EXECUTION: Final = Flag(panel=_RUN, execution=True)


@final
class RunConfig(BaseModel):
    """Every option of one run. Build it with `from_options` to get errors of one sentence.

    The fields that were given explicitly are in ``model_fields_set``; `with_defaults` fills in the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    method: Annotated[str, Dashed, WHAT] = Field(
        description="How agents talk: baseline (one agent), text_mas (they read each other's text) or "
        "latent_mas (they hand over working memory)."
    )
    model_name: Annotated[str, WHAT] = Field(
        min_length=1,
        description="Hub id, local folder or .gguf file of any causal language model; tiny is the embedded one.",
    )
    task: Annotated[str, BeforeValidator(file_or_name), WHAT] = Field(
        default="gsm8k",
        description="Benchmark (`latentmas tasks` lists them), or the .yaml file of a task of your own.",
    )
    dataset: Annotated[Path | None, WHAT] = Field(
        default=None,
        description="Local file with the task's rows, in the columns of the published data set: .json, "
        ".jsonl, .jsonl.gz, .csv or .parquet. Without it the data set comes from the hub.",
    )
    split: Annotated[str, Flag(panel=_WHAT, says_default=True)] = Field(
        default="test",
        min_length=1,
        description="Split of the data set. Default: the one the task is evaluated on, for most of them test.",
    )
    max_samples: Annotated[int, AfterValidator(_all_or_some), WHAT] = Field(
        default=-1,
        description="Questions to answer, from the first one; -1 is all. A run in its --output_dir may grow.",
    )
    seed: Annotated[int, WHAT] = Field(
        default=42,
        description="Fixes all randomness of the run; order and resuming change nothing, and batch size nothing but "
        "rounding, which below float64 may show after long thinking.",
    )
    control: Annotated[Literal["none", "no_transfer", "other_question", "noise"], Dashed, WHAT] = Field(
        default="none",
        description="Control arm: no_transfer (the last agent alone), other_question (it gets the memory of "
        "another question), noise (thoughts replaced by random vectors of the same norm).",
    )

    prompt: Annotated[str, BeforeValidator(file_or_name), TEAM] = Field(
        default="sequential",
        min_length=1,
        description="Prompt set, which is what agents are told: sequential, hierarchical (both in words of our own), "
        "or the .yaml file of a set of your own: docs/prompts.md, examples/prompts.yaml.",
    )
    topology: Annotated[Literal["chain", "parallel"], Flag(panel=_TEAM, says_default=True)] = Field(
        default="chain",
        description="Who hears whom: chain (each agent hears all earlier ones) or parallel (independent experts, side "
        "by side, whom the last agent hears). A --team file may say it itself. Default: what the prompt set says "
        "(hierarchical: parallel with text_mas, as published), else chain.",
    )
    branch_order: Annotated[Literal["team", "reversed", "shuffled"], TEAM] = Field(
        default="team",
        description="Order in which memories of independent agents are concatenated; shuffled differs by sample.",
    )
    team: Annotated[Path | None, TEAM] = Field(
        default=None,
        description="YAML file with a team of your own instead of planner, critic, refiner, judger.",
    )
    enable_thinking: Annotated[bool | None, TEAM] = Field(
        default=None,
        description="Passed to the chat template of thinking models, as on or (--no_enable_thinking) off; "
        "without either the template decides.",
    )
    think: Annotated[bool, TEAM] = Field(
        default=False, description="Start each written reply with <think>, unless the chat template does."
    )
    date: Annotated[datetime.date | None, BeforeValidator(_day), TEAM] = Field(
        default=None,
        description="The day, as YYYY-MM-DD, that prompts show where a model's chat template prints the date. Without "
        "it a new run takes today and keeps it when it is resumed.",
    )
    include_old_prompts: Annotated[bool, TEAM] = Field(
        default=False,
        description="latent_mas: each prompt quotes that of the agent before, which quotes the one before it, as "
        "instructions that were meant for others.",
    )

    latent_steps: Annotated[int, LATENT] = Field(
        default=20,
        ge=0,
        description="Latent thoughts per agent, 0 or more; 0 still hands over the memory of prompts.",
    )
    alignment: Annotated[Literal["norm", "ridge", "soft"] | None, LATENT] = Field(
        default=None,
        description="How a hidden state becomes the next input: norm (rescaled; the default), ridge (mapped "
        "by the published ridge solution, then rescaled), soft (mean embedding under the model's own "
        "next-token distribution).",
    )
    latent_space_realign: Annotated[bool, LATENT] = Field(
        default=False, description="The published name of --alignment ridge."
    )
    soft_temperature: Annotated[float, LATENT] = Field(
        default=0.5,
        gt=0,
        description="Temperature of --alignment soft, above 0; higher mixes more tokens, and from about 1 on thoughts "
        "come to one vector.",
    )

    handover: Annotated[Literal["full", "thoughts", "last_agent"], Dashed, HANDOVER] = Field(
        default="full",
        description="What of the memory is handed over: full (everything), thoughts (of all agents so far, "
        "without prompts), last_agent (all slots of the agent before). A filter chooses among them.",
    )
    handover_at: Annotated[Literal["final", "every"], HANDOVER] = Field(
        default="final",
        description="Where --handover cuts: final (before the agent that writes) or every (between any two).",
    )
    filter: Annotated[str | None, HANDOVER] = Field(
        default=None,
        min_length=1,
        description="Keep only some slots at hand-overs: receiver (what the next prompt attends to), sender (what the "
        "agent before attended to), recency, sink_thoughts, knn, key_norm, key_difference, random, or a class of your "
        "own as path.py:Name.",
    )
    keep: Annotated[float, HANDOVER] = Field(
        default=0.5, gt=0, description="How many slots --filter keeps, in what --budget counts."
    )
    budget: Annotated[Literal["cache", "original", "agent", "slots"], HANDOVER] = Field(
        default="cache",
        description="What --keep is: cache (share of the memory as it stands, so hand-overs compound), original (share "
        "of all it ever held), agent (slots of each agent), slots (slots in all).",
    )
    grain: Annotated[Literal["token", "layer", "head"] | None, HANDOVER] = Field(
        default=None,
        description="What --filter chooses for: token (one set of slots), layer, or head (a set for each head of each "
        "layer). Without it the filter's own: head for attention and keys, token for the others.",
    )
    filter_at: Annotated[Literal["final", "every"], HANDOVER] = Field(
        default="every", description="Where --filter cuts: every (between any two agents) or final."
    )
    protect_sinks: Annotated[int | None, HANDOVER_SAYS] = Field(
        default=None,
        ge=0,
        description="First slots that are always kept, inside the budget. Default: 4 with --filter, else 0.",
    )
    protect_newest: Annotated[int, HANDOVER] = Field(
        default=0, ge=0, description="Newest slots that are always kept, inside the budget."
    )
    protect_thoughts: Annotated[bool | None, HANDOVER_SAYS] = Field(
        default=None,
        description="Always keep latent thoughts, inside the budget: they were made for others, and the next agent's "
        "attention does not say what a later one will need. Default: on with --filter, off with --knn_filter.",
    )
    filter_options: Annotated[str, AfterValidator(_json_object), HANDOVER] = Field(
        default="{}", description="Further parameters of --filter as a JSON object."
    )
    knn_filter: Annotated[bool, HANDOVER] = Field(
        default=False, description="The published kNN filter: --filter knn with the three options below."
    )
    knn_percentage: Annotated[float, HANDOVER] = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of the memory --knn_filter keeps at every hand-over, in (0, 1]; despite its name.",
    )
    knn_min_keep: Annotated[int, HANDOVER] = Field(
        default=5, ge=0, description="Newest slots that --knn_filter always keeps, inside the share."
    )
    knn_strategy: Annotated[Literal["top", "bottom", "random"], HANDOVER] = Field(
        default="top", description="Slots --knn_filter keeps: top (nearest), bottom (farthest) or random."
    )
    positions: Annotated[Literal["true", "rerotate", "published"], HANDOVER] = Field(
        default="true",
        description="Where slots are once others were dropped: true (where they were), rerotate (moved together, keys "
        "turned), published (new positions count slots and collide; for comparison only).",
    )
    handover_storage: Annotated[Literal["native", "int8"], HANDOVER] = Field(
        default="native", description="How keys and values wait for the next agent; the error of int8 is recorded."
    )

    max_new_tokens: Annotated[int, TEXT] = Field(
        default=4096,
        ge=1,
        description="Tokens an agent may write, at least 1; a longer text is cut and counted.",
    )
    temperature: Annotated[float, TEXT] = Field(
        default=0.6,
        ge=0,
        description="Sampling temperature, 0 or more; 0 is greedy and ignores --top_p, --top_k and --min_p.",
    )
    top_p: Annotated[float, TEXT] = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Sample from the smallest set with this probability, in (0, 1]; 1 is off.",
    )
    top_k: Annotated[int, TEXT] = Field(
        default=0, ge=0, description="Sample from at most that many most likely tokens; 0 is off."
    )
    min_p: Annotated[float, TEXT] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Sample from tokens at least this share as likely as the likeliest, in [0, 1); 0 is off.",
    )
    repetition_penalty: Annotated[float, TEXT] = Field(
        default=1.0,
        gt=0,
        description="Above 1, what the writing agent has read in its own prompt or written is less likely, also when "
        "greedy; 1 is off.",
    )
    sampling: Annotated[Literal["flags", "model"], TEXT] = Field(
        default="flags",
        description="Where temperature, top-p, top-k, min-p and repetition penalty come from when they are not given: "
        "flags (the defaults here; what the model folder recommends is ignored, and the run says so) or model (its "
        "generation_config.json). Published runs gave temperature and top-p and inherited the rest from the folder.",
    )
    text_mas_context_length: Annotated[int, TEXT] = Field(
        default=-1,
        ge=-1,
        description="text_mas: characters of other agents' text an agent reads, the newest ones; -1 is all.",
    )
    text_mas_context_tokens: Annotated[int, TEXT] = Field(
        default=-1, ge=-1, description="The same limit in tokens; -1 is all. Give one of the two."
    )

    grading: Annotated[Literal["strict", "hub"], GRADING] = Field(
        default="strict",
        description="Code: strict (the answer is called in a process that never sees what is expected) or hub (the "
        "published test runs beside the answer, which can forge its verdict; for comparison only).",
    )
    math_verify: Annotated[bool, GRADING] = Field(
        default=False,
        description="Numbers: let math-verify look at boxed answers that are no plain number "
        "(needs the extra named math).",
    )
    code_exec: Annotated[Literal["auto", "bwrap", "landlock", "rlimit", "off"], CHECKING] = Field(
        default="auto",
        description="How model-written code is confined: bwrap, landlock, rlimit (weak), or off (answers are stored, "
        "`latentmas grade` grades them later); auto is the strongest that passes its self-test.",
    )
    allow_unsafe_code_exec: Annotated[bool, CHECKING] = Field(
        default=False,
        description="Run model-written code also where only rlimit works: it can read your files and the network.",
    )
    grading_workers: Annotated[int, CHECKING] = Field(
        default=0, ge=0, description="Processes that check code; 0 is half of the cores."
    )

    dtype: Annotated[Literal["auto", "float64", "float32", "bfloat16", "float16"], MODEL] = Field(
        default="auto",
        description="Number format of weights and memory; auto is float32 on a CPU, else the checkpoint's own.",
    )
    attn_implementation: Annotated[Literal["auto", "sdpa", "eager"], MODEL] = Field(
        default="auto", description="Attention kernel of transformers; auto is sdpa where the model has it."
    )
    revision: Annotated[str | None, MODEL] = Field(
        default=None, description="Commit, tag or branch of a hub model; without it the hub's main branch."
    )
    trust_remote_code: Annotated[bool, MODEL] = Field(
        default=False, description="Run Python code that comes with the model. Only for models you trust."
    )
    device: Annotated[str, PLACE] = Field(
        default="auto",
        min_length=1,
        description="cuda, cuda:1, mps, cpu ...; auto is the first accelerator, else cpu (published: cuda).",
    )
    device_map: Annotated[str | None, PLACE] = Field(
        default=None,
        description="Spread one model over several devices, as accelerate does: auto, balanced ...",
    )
    generate_bs: Annotated[int, PLACE] = Field(
        default=20,
        ge=1,
        description="Samples that share a batch, at least 1; changes speed and peak memory. Below float64, rounding "
        "after long thinking may differ between batch sizes.",
    )
    cache_dir: Annotated[Path | None, PLACE] = Field(
        default=None,
        description="Folder for what is computed once per model. Default: $LATENTMAS_CACHE, else ~/.cache/latentmas.",
    )

    output_dir: Annotated[Path | None, EXECUTION] = Field(
        default=None,
        description="Folder of the run. An existing one is continued when its options are the same. Default: "
        "a name under runs/ made from the options, so that the same command goes on where it stopped.",
    )
    retry_errors: Annotated[bool, EXECUTION] = Field(
        default=False, description="When resuming, answer again what ended with an error."
    )
    dry_run: Annotated[bool, EXECUTION] = Field(
        default=False,
        description="Check everything, print the first program and the counts, load no weights.",
    )
    save_ids: Annotated[bool, RESULTS] = Field(
        default=False, description="Store the token ids of prompts and written texts in every record."
    )

    show_heatmaps: Annotated[bool, PICTURES] = Field(
        default=False,
        description="Draw how near the next prompt is to each slot of each layer: one PNG per sample and hand-over, in "
        "the run folder under heatmaps.",
    )
    show_heatmaps_singlelayer: Annotated[bool, PICTURES] = Field(
        default=False, description="The same for the middle layer, which --knn_filter looks at."
    )
    save_embeddings: Annotated[bool, PICTURES] = Field(
        default=False,
        description="Store each agent's mean input vector, thoughts and last hidden state in the run folder under "
        "embeddings (`latentmas plot embeddings` draws them).",
    )

    save_withheld: Annotated[bool, RESULTS] = Field(
        default=False,
        description="Store questions and prompts also where the makers of a data set ask not to show them (gpqa).",
    )

    use_vllm: Annotated[bool, ENGINE] = Field(
        default=False,
        description="Run on vLLM: every question is one request, thoughts included, on one copy of the weights "
        "(latent_mas: Qwen3, Qwen2, Llama, Mistral and Gemma). Needs the extra named vllm.",
    )
    tensor_parallel_size: Annotated[int, ENGINE] = Field(
        default=1, ge=1, description="vLLM: devices that share the model."
    )
    max_model_len: Annotated[int | None, ENGINE] = Field(
        default=None,
        ge=2,
        description="vLLM: positions of one question, prompts, thoughts and text together. Default: what the model was "
        "made for, which may need more memory than there is.",
    )
    enable_prefix_caching: Annotated[bool, ENGINE_PLACE] = Field(
        default=False, description="vLLM: reuse the memory of equal beginnings, thoughts included."
    )
    gpu_memory_utilization: Annotated[float, ENGINE_PLACE] = Field(
        default=0.9, gt=0, le=1, description="vLLM: share of device memory it takes, in (0, 1]."
    )
    vllm_options: Annotated[str, AfterValidator(_json_object), ENGINE] = Field(
        default="{}",
        description="vLLM: further engine arguments as a JSON object, under the names vLLM gives them, such as "
        '{"kv_cache_memory_bytes": 1000000000}.',
    )
    use_second_HF_model: Annotated[bool, ENGINE] = Field(  # noqa: N815 - published
        default=False,
        description="vLLM, for comparison: a second copy of the model on transformers thinks; vLLM reads everything "
        "again, as input embeddings, and writes.",
    )
    device2: Annotated[str, ENGINE_PLACE] = Field(
        default="cuda:1", min_length=1, description="Device of that second copy, as --device names them."
    )

    def __init__(self, **options: object) -> None:
        """Check the options, as `from_options` does."""
        try:
            super().__init__(**options)
        except ValidationError as invalid:
            raise _first_error(invalid) from None

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> RunConfig:
        """Return the config of explicitly given options.

        Raises:
            ConfigError: The first thing that is wrong, in one sentence that names the option.
        """
        if not isinstance(options, Mapping):
            raise ConfigError(f"the options of a run are {shown(options)}; expected a mapping of names to values")
        try:
            return cls.model_validate(dict(options))
        except ValidationError as invalid:
            raise _first_error(invalid) from None

    def with_defaults(self, task_defaults: Mapping[str, object], model_defaults: Mapping[str, object]) -> RunConfig:
        """Return the config to run.

        Each option is the explicit one, else the task's, else the model folder's, else the published default.
        What was explicit stays so in the result. Where two options decide the same thing, a recommendation
        for one never competes with what was said about the other.

        Raises:
            ConfigError: A recommendation names an unknown option or an impossible value.
        """
        chosen: dict[str, object] = {name: getattr(self, name) for name in self.model_fields_set}
        for source, defaults in (("the task", task_defaults), ("the model folder", model_defaults)):
            if unknown := sorted(defaults.keys() - type(self).model_fields.keys()):
                raise ConfigError(f"{source} recommends a value for {unknown[0]!r}, which is no option of a run")
            allowed = RECOMMENDABLE | ({"split"} if source == "the task" else set())
            if forbidden := sorted(defaults.keys() - allowed):
                raise ConfigError(f"{source} may not recommend {forbidden[0]!r}; give --{forbidden[0]} yourself")
            decided = chosen.keys() | {partner for name in chosen for partner in _PARTNERS.get(name, ())}
            chosen |= {name: value for name, value in defaults.items() if name not in decided}
        try:
            resolved = type(self).from_options(chosen)
        except ConfigError as error:
            recommended = sorted(chosen.keys() - self.model_fields_set)
            if not recommended:
                raise
            raise ConfigError(f"{error} (recommended by task or model folder: {', '.join(recommended)})") from error
        return self._as(resolved)

    def with_sampling(self, recommended: Mapping[str, float | int]) -> RunConfig:
        """Return the config that samples as a model folder recommends, but for what was given; explicit stays so.

        Raises:
            ConfigError: It recommends an impossible value.
        """
        if self.sampling != "model":
            return self
        fields, given = type(self).model_fields, self.model_fields_set
        chosen = {name: getattr(self, name) for name in fields}
        chosen = {name: value for name, value in chosen.items() if name in given or value != fields[name].default}
        chosen |= {name: value for name, value in recommended.items() if name not in given}
        try:
            return self._as(self.from_options(chosen))
        except ConfigError as error:
            raise ConfigError(f"{error} (recommended by the model folder; --sampling model takes it)") from error

    def ignored_sampling(self, recommended: Mapping[str, float | int]) -> dict[str, float | int]:
        """Return what a model folder recommends and this run neither takes nor was told to do otherwise.

        When greedy only the repetition penalty plays a part.
        """
        names = recommended if self.temperature else recommended.keys() & {"repetition_penalty"}
        return {
            name: recommended[name]
            for name in recommended
            if name in names and name not in self.model_fields_set and getattr(self, name) != recommended[name]
        }

    def with_topology(self, default: Literal["chain", "parallel"]) -> RunConfig:
        """Return the config with this topology, unless one was given; what was explicit stays so."""
        if "topology" in self.model_fields_set:
            return self
        return self._as(self.model_copy(update={"topology": default}))

    def _as(self, resolved: RunConfig) -> RunConfig:
        """Return the values of another config, with the same options explicit as here."""
        values = {name: getattr(resolved, name) for name in type(self).model_fields}
        return self.model_construct(_fields_set=set(self.model_fields_set), **values)

    @property
    def alignment_name(self) -> Literal["norm", "ridge", "soft"]:
        """The alignment to use, whichever of its two options said so."""
        return self.alignment or ("ridge" if self.latent_space_realign else "norm")

    @property
    def cache_folder(self) -> Path:
        """Where things computed once per model are kept."""
        if self.cache_dir is not None:
            return self.cache_dir
        return default_cache_folder()

    @property
    def folder(self) -> Path:
        """Folder of the run: `output_dir`, else a name that is the same for the same options."""
        if self.output_dir is not None:
            return self.output_dir
        model = re.sub(r"[^\w.-]+", "_", Path(self.model_name).resolve().name) or "model"
        task = Path(self.task).stem if self.task.endswith(CUSTOM_SUFFIXES) else self.task
        identity = {name: _seen_from_here(name, value) for name, value in self._spelled().items()}
        return Path("runs") / f"{self.method}-{task}-{model}-{_digest(identity)[:8]}"

    @property
    def digest(self) -> str:
        """64 hexadecimal digits of the options that decide what comes out.

        Options at their default do not take part, so that a new option gives old commands no new folder; neither do
        those that spell out what is done without them.
        """
        return _digest(self._spelled())

    def _spelled(self) -> dict[str, JsonValue]:
        """Return the options that decide what comes out and are not at their default, each in one of its spellings."""
        values: dict[str, JsonValue] = self.model_dump(
            mode="json", exclude_defaults=True, exclude=set(EXECUTION_FIELDS)
        )
        if values.pop("alignment", None) == "soft":
            values["alignment"] = "soft"
        elif self.alignment_name == "ridge":
            values["latent_space_realign"] = True
        unsaid: dict[str, JsonValue] = {"revision": "main"}
        if self.knn_filter:
            unsaid |= {"protect_sinks": 0, "protect_thoughts": False}
        elif self.filter is not None:
            unsaid |= {"protect_sinks": SINKS, "protect_thoughts": True}
        for name in ("filter_options", "vllm_options"):
            if name in values:
                values[name] = json.dumps(json.loads(getattr(self, name)))
                unsaid[name] = "{}"
        return {name: value for name, value in values.items() if name not in unsaid or value != unsaid[name]}

    def identity(self) -> dict[str, JsonValue]:
        """Return the options that must be the same to resume, in the order of their declaration."""
        return self.model_dump(mode="json", exclude=set(EXECUTION_FIELDS))

    def gives(self, name: str) -> bool:
        """Whether an option was given and asks for something, its default included.

        A switch that is turned off where it is off anyway asks for nothing, and neither does None.
        """
        value, default = getattr(self, name), type(self).model_fields[name].default
        return name in self.model_fields_set and value is not None and not (value is False and default is False)

    @model_validator(mode="after")
    def _can_be_run(self) -> RunConfig:
        for sentence in self._contradictions():
            raise ConfigError(sentence)
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.latent_space_realign and self.alignment not in {None, "ridge"}:
            yield f"--latent_space_realign is --alignment ridge, so it cannot go with {self.alignment}"
        for switch, name, value in (
            ("latent_space_realign", "alignment", "ridge"),
            ("knn_filter", "filter", "knn"),
        ):
            off = switch in self.model_fields_set and getattr(self, switch) is False
            if off and getattr(self, name) == value:
                yield f"--no_{switch} turns off what --{name} {value} turns on; drop one"
        for name in ("temperature", "soft_temperature"):
            if 0 < (value := getattr(self, name)) < SMALLEST_TEMPERATURE:
                yield f"--{name} is {value}, too small to divide by; give at least {SMALLEST_TEMPERATURE}"
        if self.output_dir is not None and not self.output_dir.name:
            yield f"--output_dir {str(self.output_dir)!r} names no folder of its own; give one such as runs/first"
        if self.text_mas_context_length >= 0 and self.text_mas_context_tokens >= 0:
            yield "--text_mas_context_length and --text_mas_context_tokens limit the same text; give one"
        if self.device_map is not None and self.device != "auto":
            yield f"--device_map {self.device_map} places the model itself; drop --device {self.device}"
        if self.think and self.enable_thinking is False:
            yield "--think starts replies with a thought and --no_enable_thinking forbids it; drop one"
        yield from self._contradictions_of_handovers()
        yield from self._contradictions_of_vllm()

    def _contradictions_of_handovers(self) -> Iterator[str]:
        if self.knn_filter and self.filter not in {None, "knn"}:
            yield f"--knn_filter is --filter knn, so it cannot go with --filter {self.filter}"
        for switch, names in (
            ("knn_filter", ("knn_percentage", "knn_min_keep", "knn_strategy")),
            ("filter", FILTER_OPTIONS),
        ):
            for name in names:
                if getattr(self, switch) or not self.gives(name):
                    continue
                if switch == "filter" and self.knn_filter:
                    if name.startswith("protect"):
                        continue
                    yield f"--{name} is an option of --filter; --knn_filter has --knn_percentage and --knn_strategy"
                yield f"--{name} is an option of --{switch}; add it, or leave --{name} out"
        if self.budget in {"cache", "original"} and self.keep > 1:
            yield f"--keep is {self.keep}; a share of the memory is in (0, 1], or give --budget agent or slots"
        if self.budget in {"agent", "slots"} and "keep" in self.model_fields_set and self.keep != int(self.keep):
            yield f"--keep is {self.keep}; --budget {self.budget} counts slots: give a whole number"
        if self.budget in {"agent", "slots"} and "keep" not in self.model_fields_set:
            yield f"--budget {self.budget} counts slots; say how many with --keep"
        if self.positions == "published" and self.handover_storage == "int8":
            yield "--positions published is there to repeat what was published, which stored nothing as int8; drop one"

    def _contradictions_of_vllm(self) -> Iterator[str]:
        if not self.use_vllm:
            for name, flag in flags():
                if flag.panel == _ENGINE and self.gives(name):
                    yield f"--{name} is an option of vLLM; add --use_vllm, or leave it out"
            return
        if self.device not in ("auto", "cuda", "cuda:0"):
            yield (
                f"--device {self.device} is for transformers; vLLM takes the devices it sees: "
                f"set CUDA_VISIBLE_DEVICES and drop --device"
            )
        if self.device_map is not None:
            yield "--device_map is for transformers; vLLM spreads a model with --tensor_parallel_size"
        if self.attn_implementation != "auto" and not self.use_second_HF_model:
            yield "--attn_implementation is for transformers; drop it with --use_vllm"
        if self.alignment == "soft" and self.tensor_parallel_size > 1 and not self.use_second_HF_model:
            yield "--alignment soft needs all logits in one place; it cannot go with --tensor_parallel_size"
        for name in ARTIFACTS:
            if getattr(self, name):
                yield f"--{name} looks into the memory, which an engine does not show; drop it or --use_vllm"
        if self.temperature > HOTTEST_VLLM:
            yield f"--temperature is {self.temperature}, and vLLM takes at most {HOTTEST_VLLM}"
        if 0 < self.temperature < COOLEST_VLLM:
            yield f"--temperature is {self.temperature}, which vLLM raises to {COOLEST_VLLM}; give 0 or at least that"


SINKS: Final = 4
"""First slots that ``--filter`` keeps unless told otherwise."""
FILTER_OPTIONS: Final = (
    "keep",
    "budget",
    "grain",
    "filter_at",
    "protect_sinks",
    "protect_newest",
    "protect_thoughts",
    "filter_options",
)
ARTIFACTS: Final = ("show_heatmaps", "show_heatmaps_singlelayer", "save_embeddings")
"""Switches that store something of a sample, which is there only while the sample is answered."""
SMALLEST_TEMPERATURE: Final = 1e-6
COOLEST_VLLM: Final = 0.01
HOTTEST_VLLM: Final = 2.0
RECOMMENDABLE: Final = frozenset(
    {"prompt", "latent_steps", "alignment", "soft_temperature", "max_new_tokens", "enable_thinking", "think"}
)
"""Options a task or a model folder may set: how agents think and write, never what is trusted, measured or written to
disk. Sampling comes from flags only."""

PLACES: Final = ("model_name", "task", "dataset", "prompt", "team")
"""Options whose value may be a path."""

_PARTNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "alignment": ("latent_space_realign",),
    "latent_space_realign": ("alignment",),
    "text_mas_context_length": ("text_mas_context_tokens",),
    "text_mas_context_tokens": ("text_mas_context_length",),
    "device": ("device_map",),
    "device_map": ("device",),
    "think": ("enable_thinking",),
    "enable_thinking": ("think",),
}
"""Options that decide the same thing as another one."""


def _digest(identity: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _seen_from_here(name: str, value: JsonValue) -> JsonValue:
    """Return a path as it is written from the working directory, where it leads into it; all else as it is."""
    if name not in PLACES or not isinstance(value, str) or not Path(value).exists():
        return value
    path, here = os.path.abspath(value), os.getcwd()
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else path


def default_cache_folder() -> Path:
    """Return where things computed once are kept unless ``--cache_dir`` says otherwise."""
    return Path(os.environ.get("LATENTMAS_CACHE") or "~/.cache/latentmas").expanduser()


def calm_vllm() -> None:
    """Keep vLLM's messages out of what a command prints; whoever has set these variables has the last word.

    vLLM reads them when it is imported, and writes to stdout otherwise, where results go. Its processes are not forked:
    one that has threads, as ours has for its progress lines, cannot be copied safely.
    """
    calm = {
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    for name, value in calm.items():
        os.environ.setdefault(name, value)


def flags() -> Iterator[tuple[str, Flag]]:
    """Yield the name and the `Flag` of every option, in the order of their declaration."""
    for name, field in RunConfig.model_fields.items():
        [flag] = [item for item in field.metadata if isinstance(item, Flag)]
        yield name, flag


def _nearest(name: str, given: object) -> str:
    """Return a question that names the choice that was meant; empty where none is near."""
    field = RunConfig.model_fields.get(name)
    kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    word = str(given).strip().lower().replace("-", "_")
    word = _ALSO_CALLED.get(word, word)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


_ALSO_CALLED: Final = {
    **{"fp16": "float16", "half": "float16", "torch.float16": "float16"},
    **{"bf16": "bfloat16", "torch.bfloat16": "bfloat16"},
    **{"fp32": "float32", "float": "float32", "torch.float32": "float32"},
    **{"fp64": "float64", "double": "float64", "torch.float64": "float64"},
}
"""Number formats under the names that others give them."""


def _first_error(invalid: ValidationError) -> LatentMASError:
    first = invalid.errors(include_url=False)[0]
    reason = first.get("ctx", {}).get("error")
    if isinstance(reason, LatentMASError):
        return reason
    name = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "missing":
            return ConfigError(f"--{name} is missing; a run needs a method and a model")
        case "literal_error":
            expected = f"it should be {first['ctx']['expected']}"
            return ConfigError(f"{name} is {first['input']!r}; {expected}{_nearest(name, first['input'])}")
        case "extra_forbidden":
            return ConfigError(f"{name!r} is no option of a run; `latentmas run --help` lists them")
        case _:
            message = str(reason) if reason is not None else first["msg"].replace("Input should", "it should")
            return ConfigError(f"{name} is {first['input']!r}; {message}")


EXECUTION_FIELDS: Final = frozenset(name for name, flag in flags() if flag.execution)
"""Options that may differ between the sessions of one run."""
