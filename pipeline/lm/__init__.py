"""The language model: loading, sampling, scoring."""
