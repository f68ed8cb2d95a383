"""``latentmas vllm``: how to serve latent teams with vLLM's own server, and what to send it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from latentmas.cli.run import tell_idle
from latentmas.errors import CapabilityError, UnknownNameError
from latentmas.experiment.config import RunConfig
from latentmas.samples import AnswerKind

TOKENS: Final = 512


def command(
    model_name: Annotated[str, typer.Option("--model_name", help="Hub id or local folder; tiny is the embedded one.")],
    *,
    question: Annotated[
        str | None, typer.Option("--question", help="Print the request for this question instead of the command.")
    ] = None,
    latent_steps: Annotated[int | None, typer.Option("--latent_steps", min=0, help="Thoughts per agent.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Prompt set: sequential or hierarchical.")] = None,
    topology: Annotated[str | None, typer.Option("--topology", help="Who hears whom: chain or parallel.")] = None,
    answer_kind: Annotated[
        str, typer.Option("--answer_kind", help="How the answer is to end: number, choice or code.")
    ] = "number",
    team: Annotated[Path | None, typer.Option("--team", help="YAML file with a team of your own.")] = None,
    alignment: Annotated[
        str | None, typer.Option("--alignment", help="norm, ridge or soft; holds for the whole server.")
    ] = None,
    soft_temperature: Annotated[
        float | None, typer.Option("--soft_temperature", help="Temperature of --alignment soft.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Tokens of the answer.")] = TOKENS,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")] = 0.0,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of a hub model.")] = None,
) -> int:
    """Print the command that starts vLLM's own OpenAI server with latent thoughts, or a request for it.

    The server is stock vLLM; latentmas only has to be installed beside it. Any client of /v1/completions can use it.

    [bold]Start a server:[/bold]

      eval "$(latentmas vllm --model_name tiny) --port 8000"

    [bold]Ask it one question with the whole team, in one request:[/bold]

      latentmas vllm --model_name tiny --question "Ida owns 31 pins. She finds 6. How many?" |
        curl -s localhost:8000/v1/completions -H "Content-Type: application/json" -d @-
    """
    from latentmas.experiment import models, serving
    from latentmas.experiment.model_names import check_model_name

    check_model_name(model_name)

    if model_name == models.SCRIPTED:
        raise CapabilityError(
            f"{model_name!r} is a backend without a model, so there is nothing to serve; name a model"
        )
    if answer_kind not in list(AnswerKind):
        raise UnknownNameError("answer kind", answer_kind, list(AnswerKind))
    optional: dict[str, object] = {
        "latent_steps": latent_steps,
        "prompt": prompt,
        "topology": topology,
        "team": team,
        "alignment": alignment,
        "soft_temperature": soft_temperature,
        "revision": revision,
    }
    config = RunConfig.from_options(
        {
            "method": "latent_mas",
            "model_name": model_name,
            "use_vllm": True,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            **{name: value for name, value in optional.items() if value is not None},
        }
    ).with_defaults({}, models.model_defaults(model_name))
    codec = models.open_codec(config)
    console = Console(stderr=True)
    if question is None:
        of_requests = {
            "latent_steps": latent_steps is not None,
            "prompt": prompt is not None,
            "topology": topology is not None,
            "answer_kind": answer_kind != AnswerKind.NUMBER,
            "team": team is not None,
            "max_new_tokens": max_new_tokens != TOKENS,
            "temperature": temperature != 0,
        }
        tell_idle(console, of_requests, "requests say that, so it goes with --question")
    if config.alignment_name != "soft":
        tell_idle(console, {"soft_temperature": soft_temperature is not None}, "it belongs to --alignment soft")
    if question is None:
        print(shlex.join(serving.server_command(config, codec)))
    else:
        print(json.dumps(serving.server_request(config, codec, question, AnswerKind(answer_kind))))
    return 0
