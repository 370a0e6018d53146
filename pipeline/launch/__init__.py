"""`rlhf … --accelerate FILE`: several processes, on one machine or many, started from here."""
