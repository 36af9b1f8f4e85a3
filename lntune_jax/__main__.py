"""`python -m lntune_jax` is the same as the command `lntune-jax`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
