"""The words of a command line: abbreviations of run.py, values, switches, dashes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.cli import main
from latentmas.cli._words import Option, understood
from latentmas.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
OPTIONS = (
    Option(names=("--latent_steps",), takes_value=True, number=int),
    Option(names=("--latent_space_realign",), takes_value=False),
    Option(names=("--prompt",), takes_value=True),
    Option(names=("--prompts_of_others",), takes_value=True),
    Option(names=("--think",), takes_value=False),
    Option(names=("--no_think",), takes_value=False),
    Option(names=("--verbose", "-v"), takes_value=False),
)


def words(text: str, *, abbreviations: bool = True, takes_words: bool = False) -> list[str]:
    return understood(text.split(), OPTIONS, command="x", takes_words=takes_words, abbreviations=abbreviations)


@pytest.mark.parametrize(
    ("given_words", "meant"),
    [
        ("--latent_st 10", "--latent_steps 10"),
        ("--latent-st 10", "--latent_steps 10"),
        ("--latent_step=10", "--latent_steps 10"),
        ("--latent_steps=10", "--latent_steps 10"),
        ("--prompt p --think", "--prompt p --think"),
        ("--prompts p", "--prompts_of_others p"),
        ("--latent_sp --no_th -v", "--latent_space_realign --no_think -v"),
        ("--prompt --", "--prompt --"),
        ("--latent_steps -1", "--latent_steps -1"),
    ],
)
def test_an_option_is_what_only_one_name_begins_with_and_a_whole_name_wins(given_words, meant):
    assert words(given_words) == meant.split()


@pytest.mark.parametrize(
    ("given_words", "sentence"),
    [
        ("--latent 10", "--latent could be --latent_space_realign, --latent_steps; write more of it"),
        ("--promp p", "--promp could be --prompt, --prompts_of_others; write more of it"),
        ("--latent_stops 10", "did you mean --latent_steps?"),
        ("--tink", "did you mean --think?"),
    ],
)
def test_an_unclear_or_unknown_option_is_refused_with_what_there_is(given_words, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        words(given_words)


def test_without_abbreviations_the_whole_name_is_asked_for():
    with pytest.raises(ConfigError, match=r"x has no option --latent_st; did you mean --latent_steps\?"):
        words("--latent_st 10", abbreviations=False)


def test_a_command_with_arguments_gets_them():
    assert words("a --think b", takes_words=True) == ["a", "--think", "b"]
    with pytest.raises(ConfigError, match="takes no value, so not 'false'"):
        words("a --think false", takes_words=True)


@given(st.text("abl-_", min_size=1, max_size=5), st.sampled_from(["--aa", "--ab", "--a_b", "--bl", "--abb"]))
def test_abbreviations_mean_what_argparse_makes_of_them(rest, extra):
    names = sorted({"--aa", "--ab", "--a_b", "--bl", "--abb", extra})
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for name in names:
        parser.add_argument(name)
    options = [Option(names=(name,), takes_value=True) for name in names]
    word = f"--{rest.strip('-').replace('-', '_')}"
    if word == "--":
        return
    try:
        found, strangers = parser.parse_known_args([word, "v"])
        [expected] = [f"--{name}" for name, value in vars(found).items() if value] if not strangers else [None]
    except (argparse.ArgumentError, SystemExit):
        expected = None
    try:
        ours = understood([word, "v"], options, command="x", takes_words=False, abbreviations=True)[0]
    except ConfigError:
        ours = None
    assert ours == expected


def test_the_published_script_takes_abbreviations_and_the_command_does_not(capsys):
    line = "--method latent_mas --model scripted --tas tiny --latent_step 2 --max_s 2 --dry"
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "run.py"), *line.split()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Think" in done.stdout
    assert main(["run", *line.split()]) == 2
    assert "did you mean --model_name?" in capsys.readouterr().err


def test_an_abbreviation_that_is_not_clear_is_refused_by_the_published_script_with_all_it_could_be(capsys):
    assert main(["run", "--method", "latent_mas", "--model_name", "tiny", "--latent", "2"], abbreviations=True) == 2
    assert "--latent could be --latent_space_realign, --latent_steps" in capsys.readouterr().err
