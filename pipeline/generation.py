"""Public names for scripts: ``from pipeline.generation import sample``."""

from __future__ import annotations

from pipeline.lm.generation import sample

__all__ = ["sample"]
