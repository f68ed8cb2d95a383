"""``latentmas vllm``: what has no effect is told on stderr; stdout holds the command or the request alone."""

import json

import pytest

from latentmas.cli import main

pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", []),
        ("--alignment soft --soft_temperature 0.4", []),
        ("--soft_temperature 0.4", ["--soft_temperature has no effect: it belongs to --alignment soft"]),
        (
            "--latent_steps 5 --topology parallel --max_new_tokens 9",
            [
                "--latent_steps, --topology and --max_new_tokens have no effect: requests say that, so it goes with "
                "--question"
            ],
        ),
        ("--question x --latent_steps 5 --max_new_tokens 9 --temperature 0.5 --answer_kind choice", []),
    ],
)
def test_an_option_without_effect_is_told_once(options, said, capsys):
    assert main(["vllm", "--model_name", "tiny", *options.split()]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == said
    [line] = out.splitlines()
    if "--question" in options:
        assert json.loads(line)["max_tokens"] == 9
    else:
        assert line.startswith("python -m vllm.entrypoints.openai.api_server")
