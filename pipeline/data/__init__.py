"""Texts in, splits out."""

from pipeline.data.splits import ExperimentData, load_data, load_preferences

__all__ = ["ExperimentData", "load_data", "load_preferences"]
