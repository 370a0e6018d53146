"""SFT, reward model, PPO, DPO and their honest comparison, on current transformers and TRL."""
