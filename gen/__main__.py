"""`python -m gen`: the command line."""

import sys

from gen.cli import main

if __name__ == "__main__":
    sys.exit(main())
