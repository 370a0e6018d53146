"""`rlhf play`: what each policy makes of a prompt, with its rewards and its KL."""
