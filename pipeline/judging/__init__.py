"""`rlhf evaluate-reward`: an honest account of each reward against the people it stands for."""

PEOPLE = "people's mean"
"""What the agreement matrix calls the mean human rating; no reward may be called so."""
