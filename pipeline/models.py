"""Public names for scripts: ``from pipeline.models import load_checkpoint``."""

from __future__ import annotations

from pipeline.lm.models import load_checkpoint

__all__ = ["load_checkpoint"]
