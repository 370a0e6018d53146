"""What draws PPO's completions in the place of its own loop: any callable, or an engine."""

from pipeline.ppo.engines.interface import Called, Drawn, Engine, Request, Sampler, checked

__all__ = ["Called", "Drawn", "Engine", "Request", "Sampler", "checked"]
