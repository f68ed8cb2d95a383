"""The command line. Only this package prints.

Each module here whose name does not begin with ``_`` is a command of that name. Its `command` function is
what runs; it returns the exit code and brings the help text.

This module loads next to nothing, so that Ctrl-C is heard by `main` from the first moment on.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the real one would load the module typing
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, *, abbreviations: bool = False) -> int:
    """Run the command line and return its exit code.

    0 is done, 1 failed while running, 2 asked for what cannot be run, 130 interrupted. What is wrong is said
    in one line on stderr.

    Args:
        argv: Words after the program's name; None takes those of this process.
        abbreviations: Options may be cut short as long as it is clear which is meant, as argparse lets them.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        from latentmas.cli import _streams

        with _streams.guarded_stdout() as stdout:
            try:
                code = _run(words, abbreviations=abbreviations)
                stdout.flush()  # what fails shall fail here, and not when the process ends
            except _streams.StdoutFailed as failed:
                stdout.let_go()
                code = _streams.say_failed(failed)
    except KeyboardInterrupt:
        code = 130  # a command says what it keeps; outside of one there is nothing to tell
    if code == 130:
        # Where an interrupt ends Python that is run from its text, as C extensions do, CPython notes it as unhandled,
        # and `python -m` then dies of SIGINT although it was caught. Only running another text takes that note back.
        exec("")
    return code


def _run(words: list[str], *, abbreviations: bool) -> int:
    if words == ["--version"]:
        import latentmas

        print(f"latentmas {latentmas.__version__}")
        return 0
    try:
        from latentmas.cli import _application
    except ModuleNotFoundError as missing:
        from latentmas.cli._streams import say_error

        how = "`pip install latentmas` brings what is needed"
        return say_error(f"{missing.name} is not installed for {sys.executable}; {how}", 1)
    return _application.run(words, abbreviations=abbreviations)
