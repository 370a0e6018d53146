"""What keeps a PPO run up and tells how it goes; nothing of the algorithm is here.

* `base`: the Trainer's methods and callback, handed on to the modules below
* `guards`: a failed reward, a NaN or a KL that runs away ends the run in one line
* `memory`: half as many rows at once where memory does not suffice
* `sharing`: prompts, random numbers and rows dealt to the processes
* `distributed`: weights that FSDP2 splits
* `state`: what a checkpoint holds
* `metrics`, `performance`, `journal`: what is logged, and kept of each rollout
"""
