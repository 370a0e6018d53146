"""The stages of an experiment, each with a `run(experiment)`."""
