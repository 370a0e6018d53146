"""Reinforcement learning from first principles: the mathematics that the pipeline's PPO reuses."""
