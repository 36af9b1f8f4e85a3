"""`lntune-jax merge`: a full Hugging Face checkpoint with an adapter in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ..messages import warn
from ..tasks.loading import check_model_directory
from .console import byte_count, make_console, say, short_path
from .described import base_of
from .options import MergeSettings

if TYPE_CHECKING:
    from ..models import MergedCheckpoint

_MOST_NAMES = 4


def run(settings: MergeSettings) -> None:
    """Write the checkpoint and say what it holds."""
    console = make_console()
    from .. import models
    from ..models.merging import find_adapter
    from ..peft.files import OURS

    found = find_adapter(settings.adapter)
    model, revision = base_of(found.directory, settings.model, settings.revision)
    check_model_directory(model, revision)
    merged = models.merge_checkpoint(
        model,
        settings.adapter,
        settings.output,
        revision=revision,
        overwrite=settings.overwrite,
        norms_only=settings.norms_only,
        task=settings.task and settings.task.upper(),
        labels=settings.labels or None,
        name_map=settings.name_map,
    )
    if found.kind == OURS and found.pooling is None and _holds_pooled(merged):
        warn(
            f"the adapter {found.directory} does not say how its classifier pools: the checkpoint "
            "is right if it reads what transformers' classifiers read, and not the mean over "
            "tokens (--norms-only leaves the head out)",
            UserWarning,
        )
    _show(console, model, merged)


def _holds_pooled(merged: MergedCheckpoint) -> bool:
    # One that labels tokens does not pool.
    pools = not (merged.architecture or "").endswith("ForTokenClassification")
    return pools and any(name.partition(".")[0] in ("classifier", "score") for name in merged.tuned)


def _show(console: Console, model: str, merged: MergedCheckpoint) -> None:
    compared = (
        f"{merged.compared} tensors compared with those of the training: the same"
        if merged.compared
        else "names and shapes compared; the adapter has no values of its base to compare"
    )
    say(console, f"base: {model} ({compared})")
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
