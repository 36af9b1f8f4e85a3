"""The fixtures of `tests.support.command_line`."""

from tests.support.command_line import _strict_promotion as _strict_promotion
from tests.support.command_line import fast_compilation as fast_compilation
from tests.support.command_line import model_directory as model_directory
from tests.support.command_line import run as run
