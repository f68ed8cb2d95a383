"""Team: the package as a library - a model, some agents, and questions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import final

from latentmas import prompts
from latentmas.agents import AgentGraph
from latentmas.errors import ConfigError, SampleError
from latentmas.experiment import compose, engines, handovers, models, runner
from latentmas.experiment.config import RunConfig
from latentmas.experiment.shared import SharedBackend
from latentmas.samples import AnswerKind, Record, Sample


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
        model_name: str,
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
        answer_kind: AnswerKind = AnswerKind.NUMBER,
        use_vllm: bool = False,
        enable_prefix_caching: bool = False,
        tensor_parallel_size: int = 1,
        vllm_options: Mapping[str, object] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        optional = {
            "prompt": prompt,
            "latent_steps": latent_steps,
            "generate_bs": generate_bs,
            "temperature": temperature,
            "use_vllm": use_vllm or None,
            "vllm_options": None if vllm_options is None else json.dumps(dict(vllm_options)),
        }
        given: dict[str, object] = {
            "model_name": model_name,
            "method": method,
            "max_new_tokens": max_new_tokens,
            "enable_prefix_caching": enable_prefix_caching,
            "tensor_parallel_size": tensor_parallel_size,
            "seed": seed,
            "device": device,
            "dtype": dtype,
            **{name: value for name, value in optional.items() if value is not None},
        }
        if twice := sorted(given.keys() & (options or {}).keys()):
            raise ConfigError(f"{twice[0]!r} is an argument of Team itself; leave it out of options")
        given |= options or {}
        if given.get("sampling") != "model":
            given.setdefault("temperature", 0.0)
        config = RunConfig.from_options(given)
        config = config.with_defaults({}, models.model_defaults(model_name))
        prompt_set = prompts.load_prompts(config.prompt)
        self.config = config.with_topology(compose.default_topology(config, prompt_set))
        self.graph = graph or compose.graph_of(self.config)
        recommended = models.recommended_sampling(self.config)
        self.config = self.config.with_sampling({"temperature": 0.0, **recommended})
        codec = models.open_codec(self.config)
        task = self.config.task if "task" in self.config.model_fields_set else None
        self.method = compose.build_method(self.config, self.graph, prompt_set, codec, kind=answer_kind, task=task)
        if self.config.use_vllm:
            engines.check_vllm(self.config, self.method, codec)
        handovers.check(self.config, self.method.needs)
        self.backend = compose.open_backend(self.config, codec, self.method.needs)
        self._shared = SharedBackend(self.backend)

    def close(self) -> None:
        """End the engine, where there is one. The team answers no questions after that.

        Threads that wait for answers get an `EngineError`.
        """
        self._shared.close()

    def ask(self, question: str) -> Record:
        """Return everything about one question: ``text`` is the answer, ``agents`` what each did.

        Raises:
            SampleError: The question cannot be answered, for example because it is too long.
        """
        [record] = self.ask_all([question])
        if record.error is not None:
            raise SampleError(record.error)
        return record

    def ask_all(self, questions: Sequence[str]) -> list[Record]:
        """Return one record per question, in order; a question that failed has an ``error`` in its record."""
        # The question names its sample, so that what is sampled does not depend on what else is asked.
        seen: Counter[str] = Counter()
        samples = []
        for question in questions:
            name = hashlib.sha256(question.encode()).hexdigest()[:16]
            samples.append(Sample(id=f"{name}-{seen[name]}", question=question, target=""))
            seen[name] += 1
        kept = _Records()
        with closing(self._shared.client()) as backend:
            runner.run(samples, method=self.method, backend=backend, store=kept, seed=self.config.seed)
        by_id = {record.id: record for record in kept.records}
        return [by_id[sample.id] for sample in samples]


@dataclass(slots=True)
class _Records:
    """A store in memory."""

    records: list[Record] = field(default_factory=list)

    def append(self, record: Record) -> None:
        self.records.append(record)
