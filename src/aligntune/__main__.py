"""`python -m aligntune` is the command `aligntune`."""

import sys

from aligntune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
