"""vLLM's own server with latent teams: the command that starts it, and a request for it."""

from __future__ import annotations

import json
import sys

from latentmas import prompts
from latentmas.experiment import compose
from latentmas.experiment.config import RunConfig
from latentmas.experiment.engines import refuse_missing, vllm_options
from latentmas.protocols import Codec
from latentmas.samples import AnswerKind, Sample


def server_command(config: RunConfig, codec: Codec) -> list[str]:
    """Return the words of a command that starts vLLM's own server with thoughts.

    Raises:
        CapabilityError: This model cannot think on vLLM.
    """
    options = vllm_options(config, codec, thinks=True, with_text=True)
    assert options.latent is not None
    words = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", options.model, "--dtype", options.dtype]
    # Requests say how they sample; what the model's folder recommends would come on top of it.
    words += ["--generation-config", "vllm"]
    if options.revision is not None:
        words += ["--revision", options.revision]
    for name, value in options.latent.engine_options(options.architecture).items():
        words += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
    return words


def server_request(config: RunConfig, codec: Codec, question: str, kind: AnswerKind) -> dict[str, object]:
    """Return the body of a request to ``/v1/completions`` that is a whole team on one question.

    Args:
        kind: How the last agent is told to end.

    Raises:
        SampleError: The question holds the placeholder.
        CapabilityError: No request can be this team, because it has independent agents.
    """
    from latentmas.backends.hf.chat import ChatCodec
    from latentmas.backends.vllm.requests import Passage, unfit

    assert isinstance(codec, ChatCodec)
    options = vllm_options(config, codec, thinks=True, with_text=True)
    assert options.latent is not None
    placeholder = options.latent.placeholder
    prompt_set = prompts.load_prompts(config.prompt)
    config = config.with_topology(compose.default_topology(config, prompt_set))
    method = compose.build_method(config, compose.graph_of(config), prompt_set, codec, kind=kind)
    refuse_missing(config, method)
    program = next(method.solve(Sample(id="question", question=question, target="")))
    error = unfit(program, context=sys.maxsize, vocabulary=sys.maxsize, placeholder=placeholder)
    if error is not None:
        raise error
    request = Passage(program, config.seed, placeholder).request()
    return {
        "model": options.model,
        "prompt": list(request.tokens),
        "max_tokens": request.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "top_k": request.sampling.top_k,
        "min_p": request.sampling.min_p,
        "repetition_penalty": request.sampling.repetition_penalty,
        "seed": request.seed,
        "stop_token_ids": sorted(options.stop_tokens),
        # The server makes the text, and drops the marks of thinking where they are special tokens, or nothing.
        **({"skip_special_tokens": False} if codec.kept else {}),
    }
