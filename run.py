"""The published command line: ``python run.py --method ...`` is ``latentmas run --method ...``.

As in the published script, an option may be cut short where it is clear which one is meant: ``--latent_step 10``.
"""

import sys

try:
    from latentmas.cli import main
except KeyboardInterrupt:
    sys.exit(130)
except ModuleNotFoundError as missing:
    sys.exit(
        f"error: {missing.name} is not installed for {sys.executable}; "
        "run `make install` here and use .venv/bin/python run.py, or `pip install -e .`"
    )

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]], abbreviations=True))
