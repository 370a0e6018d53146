"""Measuring policies alike, and the optimum they are measured against."""
