"""The fixtures of the command line's tests: see `tests.support.tiny_bert`."""

from tests.support.tiny_bert import (  # noqa: F401
    _strict_promotion,
    make_rows,
    make_run,
    model_directory,
    run,
    table,
)
