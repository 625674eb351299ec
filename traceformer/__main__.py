"""`python -m traceformer`: the command line."""

import sys

from traceformer.cli import main

if __name__ == "__main__":
    sys.exit(main())
