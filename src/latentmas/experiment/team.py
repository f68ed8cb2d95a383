"""Team: the package as a library - a model, some agents, and questions."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import final

from latentmas import prompts
from latentmas.agents import AgentGraph
from latentmas.errors import ConfigError, SampleError, UnknownNameError, shown
from latentmas.experiment import compose, effects, engines, handovers, models, runner
from latentmas.experiment.config import RunConfig
from latentmas.experiment.model_names import check_model_name
from latentmas.experiment.questions import Asked, sample_of, samples_of
from latentmas.experiment.shared import SharedBackend
from latentmas.protocols import Codec
from latentmas.samples import AnswerKind, Record, Sample

logger = logging.getLogger(__name__)


@final
class Team:
    """Agents that share one model and answer questions.

    Any number of threads may ask at once: their questions fill the same batches, and each answer is what the question
    alone would get.

    Args:
        model_name: Hub id, local folder, ``.gguf`` file, or ``tiny`` for the embedded model.
        method: ``latent_mas``, ``text_mas`` or ``baseline``.
        graph: Who hears whom; None is planner, critic, refiner, judger in a chain, or as `options` say.
        prompt: A prompt set, or the path of a file that is one. Words it has for a task are used where `options` name
            that ``task``.
        latent_steps, generate_bs: As on the command line; None takes what the model folder recommends, else the
            default.
        temperature: 0 is greedy, and so is None unless `options` say ``{"sampling": "model"}`` and the model folder
            recommends one.
        answer_kind: How the last agent is told to end.
        use_vllm: Run on an engine of vLLM instead of transformers; `close` ends it.
        enable_prefix_caching, tensor_parallel_size: As on the command line.
        vllm_options: Further engine arguments, under the names vLLM gives them.
        options: Further options under their names on the command line, such as ``{"filter": "receiver", "keep": 0.5}``.

    Raises:
        LatentMASError: Something about these cannot work; says what.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        method: str = "latent_mas",
        graph: AgentGraph | None = None,
        prompt: str | None = None,
        latent_steps: int | None = None,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        seed: int = 42,
        device: str = "auto",
        dtype: str = "auto",
        generate_bs: int | None = None,
        answer_kind: AnswerKind | str = AnswerKind.NUMBER,
        use_vllm: bool = False,
        enable_prefix_caching: bool = False,
        tensor_parallel_size: int = 1,
        vllm_options: Mapping[str, object] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        if not isinstance(model_name, str | os.PathLike):
            raise ConfigError(f"model_name is {shown(model_name)}; expected a hub id, a folder or file, or 'tiny'")
        if graph is not None and not isinstance(graph, AgentGraph):
            raise ConfigError(
                f"graph is {shown(graph)}; expected an AgentGraph: chain([...]), parallel([...]) or load_team(path)"
            )
        for name, mapping in (("options", options), ("vllm_options", vllm_options)):
            if mapping is not None and not isinstance(mapping, Mapping):
                raise ConfigError(f"{name} is {shown(mapping)}; expected a mapping of names to values")
        optional = {
            "prompt": prompt,
            "latent_steps": latent_steps,
            "generate_bs": generate_bs,
            "temperature": temperature,
            "use_vllm": use_vllm or None,
            "vllm_options": None if vllm_options is None else _json(vllm_options),
        }
        # What stands at the default of a run was not asked for.
        at_default = {
            "enable_prefix_caching": (enable_prefix_caching, False),
            "tensor_parallel_size": (tensor_parallel_size, 1),
            "seed": (seed, 42),
            "device": (device, "auto"),
            "dtype": (dtype, "auto"),
        }
        given: dict[str, object] = {
            "model_name": os.fspath(model_name),
            "method": method,
            "max_new_tokens": max_new_tokens,
            **{name: value for name, value in optional.items() if value is not None},
            **{name: value for name, (value, default) in at_default.items() if value != default},
        }
        if twice := sorted({*given, *at_default} & (options or {}).keys()):
            raise ConfigError(f"{twice[0]!r} is an argument of Team itself; leave it out of options")
        given |= options or {}
        if given.get("sampling") != "model":
            given.setdefault("temperature", 0.0)
        config = RunConfig.from_options(given)
        effects.refuse_for_team(config)
        if graph is not None and (wired := [name for name in ("team", "topology") if config.gives(name)]):
            raise ConfigError(f"graph says who hears whom, and so does the option {wired[0]!r}; give one")
        kind = _answer_kind(answer_kind)
        check_model_name(config.model_name)
        config = config.with_defaults({}, models.model_defaults(config.model_name))
        prompt_set = prompts.load_prompts(config.prompt)
        self.config = config.with_topology(compose.default_topology(config, prompt_set))
        self.graph = graph or compose.graph_of(self.config)
        recommended = models.recommended_sampling(self.config)
        self.config = self.config.with_sampling({"temperature": 0.0, **recommended})
        codec = models.open_codec(self.config)
        task = self.config.task if "task" in self.config.model_fields_set else None
        if task is not None and task not in (known := {*compose.task_names(), *prompt_set.tasks}):
            raise UnknownNameError("task", task, known)
        self.method = compose.build_method(self.config, self.graph, prompt_set, codec, kind=kind, task=task)
        if self.config.use_vllm:
            engines.check_vllm(self.config, self.method, codec)
        handovers.check(self.config, self.method.needs)
        self._say_what_has_no_effect(codec)
        if graph is not None and self.method.name == "baseline":
            logger.warning("graph has no effect: baseline is one agent alone")
        self.backend = compose.open_backend(self.config, codec, self.method.needs)
        self._shared = SharedBackend(self.backend)
        self._save_ids = self.config.save_ids or "save_ids" not in self.config.model_fields_set

    def _say_what_has_no_effect(self, codec: Codec) -> None:
        example = Sample(id="example", question="How many?", target="")
        situation = effects.Situation(
            task=None,
            graph=self.graph,
            program=next(self.method.solve(example)),
            draws=handovers.draws(self.config),
        )
        for remark in effects.remarks(self.config, models.looked_at(situation, self.config, codec)):
            logger.warning("%s", remark)

    def close(self) -> None:
        """End the engine, where there is one. The team answers no questions after that.

        Threads that wait for answers get an `EngineError`.
        """
        self._shared.close()

    def ask(self, question: Asked, *, system: str | None = None) -> Record:
        """Return everything about one question: ``text`` is the answer, ``agents`` what each did.

        Args:
            question: A text, which is put into the agents' prompts; or a dialogue, a list of messages that ends with
                the user's, which is the question. `baseline` reads a dialogue as it stands: its prompt is the chat. In
                a team every agent reads the turns before, then its own prompt with the question. What the chat template
                leaves out of earlier replies, such as their thinking, nobody reads.
            system: System message of every agent, in place of the prompt set's.

        Raises:
            DataError: It is no question; says why.
            ConfigError: The chat template refuses the dialogue.
            SampleError: The question cannot be answered, for example because it is too long.
            EngineError: The team was closed, or its backend is lost.
        """
        sample = sample_of(question, system)
        [record] = self._answer([replace(sample, id=f"{sample.id}-0")])
        if record.error is not None:
            raise SampleError(record.error)
        return record

    def ask_all(self, questions: Iterable[Asked], *, system: str | None = None) -> list[Record]:
        """Return one record per question, in order; a question that failed has an ``error`` in its record.

        Args:
            questions: Each as `ask` takes it.
            system: As of `ask`, for all.

        Raises:
            DataError: Something is no question; nothing was asked then.
            ConfigError: The chat template refuses a dialogue; nothing was asked then.
            EngineError: The team was closed, or its backend is lost.
        """
        return self._answer(samples_of(questions, system))

    def _answer(self, samples: Sequence[Sample]) -> list[Record]:
        for number, sample in enumerate(samples, start=1):
            if sample.before or sample.verbatim:  # chats of strangers; before any of them is worked on
                try:
                    next(self.method.solve(sample))
                except ConfigError as error:
                    which = f"question {number} of {len(samples)}: " if len(samples) > 1 else ""
                    raise ConfigError(f"{which}{error}") from error
        kept = _Records()
        with closing(self._shared.client()) as backend:
            runner.run(
                samples,
                method=self.method,
                backend=backend,
                store=kept,
                seed=self.config.seed,
                save_ids=self._save_ids,
            )
        by_id = {record.id: record for record in kept.records}
        return [by_id[sample.id] for sample in samples]


def _answer_kind(given: AnswerKind | str) -> AnswerKind:
    try:
        return AnswerKind(given)
    except ValueError:
        known = ", ".join(kind.value for kind in AnswerKind)
        raise ConfigError(f"answer_kind is {given!r}; expected one of {known}") from None


def _json(options: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vllm_options can only hold what JSON can: {error}") from error


@dataclass(slots=True)
class _Records:
    """A store in memory."""

    records: list[Record] = field(default_factory=list)

    def append(self, record: Record) -> None:
        self.records.append(record)
