"""`lntune-jax plan`: what a training step takes on chips that are not there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ..tasks.loading import check_model_directory
from .console import make_console, make_notes, say
from .inspect import TASKS, parse_mesh
from .options import PlanSettings
from .output import check_output, write_output


def run(settings: PlanSettings) -> None:
    """Compile the step, print the report, and write the figures where asked to."""
    mesh = parse_mesh(settings.mesh)
    check_output(settings.json, flag="--json")
    if not (settings.model.endswith(".json") and Path(settings.model).is_file()):
        check_model_directory(settings.model, settings.revision)
    if "jax" not in sys.modules:
        # Nothing is computed here: no device is to be looked for, and none to be taken.
        os.environ["JAX_PLATFORMS"] = "cpu"
    from .. import models

    options: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("dtype", "remat", "attention", "quantize")
        if getattr(settings, name) is not None
    }
    notes = make_notes()
    found = models.plan(
        settings.model,
        chips=settings.chips,
        mesh=mesh or None,
        batch=settings.batch_size,
        length=settings.max_length,
        method=settings.method,
        compare=settings.compare,
        search=not settings.no_search,
        rank=settings.rank,
        task="auto" if settings.task == "auto" else TASKS[settings.task],
        num_labels=settings.num_labels,
        revision=settings.revision,
        progress=lambda line: say(notes, line),
        **options,
    )
    say(make_console(), str(found))
    if settings.json is not None:
        write_output(settings.json, json.dumps(found.to_dict(), indent=2) + "\n", "--json")
