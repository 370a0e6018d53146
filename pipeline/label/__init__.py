"""Labelling preference pairs with a judge model or a reward instead of people."""
