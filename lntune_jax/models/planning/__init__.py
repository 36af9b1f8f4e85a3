"""What a training step holds, computes and sends on chips that are not there, by their compiler."""

from .plan import plan
from .report import Plan

__all__ = ["Plan", "plan"]
