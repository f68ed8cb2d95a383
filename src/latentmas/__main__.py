"""``python -m latentmas`` is the command ``latentmas``."""

import sys

from latentmas.cli import main

if __name__ == "__main__":
    sys.exit(main())
