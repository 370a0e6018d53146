"""What keeps a PPO run up and tells how it goes: guards, memory, processes, metrics."""
