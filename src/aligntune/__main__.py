"""`python -m aligntune` is the command `aligntune`."""

import sys

from aligntune.cli.main import main
from aligntune.utils.parent import follow_parent

if __name__ == "__main__":
    follow_parent()
    sys.exit(main())
