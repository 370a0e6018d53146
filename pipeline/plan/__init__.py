"""What an experiment needs before it is run: memory by role, sequence length, tokens a second."""
