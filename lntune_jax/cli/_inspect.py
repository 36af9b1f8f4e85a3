"""`lntune-jax inspect`: what would train, from a model's config file alone."""

from __future__ import annotations

from ._base import check_model_directory, tuning_config
from ._console import make_console, say
from ._settings import InspectSettings


def run(settings: InspectSettings) -> None:
    """Print the trainable leaves and PEFT's line."""
    check_model_directory(settings.model)
    import lntune_jax as lnt

    from .. import models

    model = models.from_config(
        settings.model,
        task=None if settings.task == "none" else settings.task,
        num_labels=settings.num_labels if settings.task == "SEQ_CLS" else None,
    )
    config = tuning_config(settings.model, model.params, (), settings.selection)
    say(make_console(), lnt.report_params(model.params, config).table())
