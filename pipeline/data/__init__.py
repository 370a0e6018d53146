"""Texts in, splits out."""

from pipeline.data.preferences import load_preferences
from pipeline.data.splits import ExperimentData, load_data

__all__ = ["ExperimentData", "load_data", "load_preferences"]
