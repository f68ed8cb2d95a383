"""Tokens of an engine that is spread over processes: ``python spread_model.py``, options as JSON on stdin.

vLLM starts processes that import this file, so the engine cannot live in the tests' own process.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from latentmas.backends.scripted import ByteCodec
    from latentmas.backends.vllm.backend import VLLMBackend
    from latentmas.backends.vllm.engine import EngineOptions, VLLMEngine
    from latentmas.backends.vllm.settings import LatentSettings
    from latentmas.program import Program, Read, Think, Write

    asked = json.load(sys.stdin)
    chosen = EngineOptions(
        **{
            **asked["options"],
            "latent": LatentSettings(**asked["latent"]),
            "stop_tokens": frozenset(asked["stop_tokens"]),
        }
    )
    backend = VLLMBackend(lambda: VLLMEngine(chosen), ByteCodec(), placeholder=chosen.latent.placeholder)
    programs = [
        Program(
            (
                *(
                    Think(agent="a", steps=step) if isinstance(step, int) else Read(agent="a", tokens=tuple(step))
                    for step in steps
                ),
                Write(agent="a", max_new_tokens=asked["new_tokens"]),
            )
        )
        for steps in asked["programs"]
    ]
    written = [completion.steps[-1].written for completion in backend.run(programs)]
    backend.close()
    print(json.dumps({"written": written, "environment": dict(backend.environment())}))


if __name__ == "__main__":
    main()
