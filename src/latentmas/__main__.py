"""``python -m latentmas`` is the command ``latentmas``."""

import sys

if __name__ == "__main__":
    try:
        from latentmas.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
