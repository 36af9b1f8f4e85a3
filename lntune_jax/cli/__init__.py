"""The command line: `lntune-jax inspect | train | evaluate | predict | generate | convert | ...`.

Only `main` is public. Everything heavy (jax, transformers, matplotlib) is imported inside the
function that needs it, so that `--help` and a mistyped flag answer at once.
"""

from ._main import main as main
