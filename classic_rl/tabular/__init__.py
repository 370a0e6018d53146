"""Tabular methods: planning with a known model, and learning from samples."""
