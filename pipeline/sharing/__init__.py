"""Pushing what an experiment has finished to the Hugging Face hub."""
