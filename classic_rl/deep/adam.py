"""Adam over one flat parameter (see `classic_rl.deep.networks.flatten_parameters`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1).

    Not ``torch.optim.Adam``: on one vector of a few thousand weights this is as fast as the fused
    kernel, and torch's optimisers import its compiler when the first one is made, which takes as
    long as solving CartPole.

    Args:
        parameters: a vector with its gradient. learning_rate: may be changed between steps.
        eps: ε, added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: nn.Parameter,
        learning_rate: float,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.parameters, self.learning_rate = parameters, learning_rate
        self.eps, self.betas = eps, betas
        self.steps = 0
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradient."""
        gradient = self.parameters.grad
        assert gradient is not None
        beta1, beta2 = self.betas
        self.steps += 1
        self.first.lerp_(gradient, 1 - beta1)  # m = β₁ m + (1 - β₁) g
        self.second.lerp_(gradient * gradient, 1 - beta2)  # v = β₂ v + (1 - β₂) g²
        root = (self.second / (1 - beta2**self.steps)).sqrt_().add_(self.eps)
        # θ = θ - α m̂ / (√v̂ + ε)
        size = self.learning_rate / (1 - beta1**self.steps)
        self.parameters.addcdiv_(self.first, root, value=-size)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        return {"first": self.first, "second": self.second, "steps": torch.tensor(self.steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`."""
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.steps = int(state["steps"])
