"""`rlhf sweep`: policies × β × seeds, each trial an ordinary experiment in a process of its own."""
