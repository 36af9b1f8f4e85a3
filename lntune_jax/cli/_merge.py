"""`lntune-jax merge`: a full Hugging Face checkpoint with an adapter in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ._base import check_model_directory
from ._console import byte_count, make_console, say, short_path
from ._transfer_settings import MergeSettings

if TYPE_CHECKING:
    from ..models import MergedCheckpoint

_MOST_NAMES = 4


def run(settings: MergeSettings) -> None:
    """Write the checkpoint and say what it holds."""
    console = make_console()
    check_model_directory(settings.model)
    from .. import models

    merged = models.merge_checkpoint(
        settings.model,
        settings.adapter,
        settings.output,
        overwrite=settings.overwrite,
        norms_only=settings.norms_only,
        task=settings.task,
        name_map=settings.name_map,
    )
    _show(console, settings, merged)


def _show(console: Console, settings: MergeSettings, merged: MergedCheckpoint) -> None:
    compared = (
        f"{merged.compared} tensors compared with those of the training: the same"
        if merged.compared
        else "names and shapes compared; the adapter has no values of its base to compare"
    )
    say(console, f"base: {settings.model} ({compared})")
    say(console, f"adapter: {short_path(merged.adapter)} ({merged.kind})")
    if merged.quantized:
        say(
            console,
            f"the adapter was trained over kernels in {merged.quantized}; here it is over the "
            "checkpoint's own: measure the merged model anew",
        )
    say(console, f"tuned: {len(merged.tuned):,} tensors")
    for what, names in (
        ("new", merged.added),
        ("left out, not read by the new class", merged.left_out),
        ("not used of the adapter", merged.unused),
        ("not copied", merged.skipped),
    ):
        if names:
            say(console, f"{what}: {_list(names)}")
    count = f"{len(merged.files):,} weight file{'s' if len(merged.files) > 1 else ''}"
    size = f"{byte_count(merged.path):,} bytes"
    say(console, f"merged: {short_path(merged.path)} ({merged.architecture}, {count}, {size})")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
