"""Network bodies: multilayer perceptrons and convolutions, orthogonally initialised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from classic_rl.errors import ProblemError

Activation = Literal["tanh", "relu"]


class _NumpyTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = torch.from_numpy(np.tanh(inputs.numpy()))
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return torch.addcmul(grads[0], grads[0], outputs * outputs, value=-1)  # g (1 - tanh²)


class Tanh(nn.Module):
    """The hyperbolic tangent by numpy's vector code.

    Torch's own took some twenty times as long where this was measured (AMD Zen 5, 512 x 64
    values); and acting in numpy and learning in torch see the same function to the last bit.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Element by element, any shape."""
        return _NumpyTanh.apply(inputs)  # type: ignore[return-value]


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU}


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    """Initialise in place: orthogonal weights of the given gain, zero bias (Saxe et al. 2014)."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def mlp(
    sizes: Sequence[int], activation: Activation = "tanh", out_gain: float | None = None
) -> nn.Sequential:
    """A multilayer perceptron through ``sizes``.

    Args:
        sizes: widths from input to output, at least two.
        out_gain: gain of the last layer, which then has no activation behind it; None makes every
            layer a hidden one. PPO's are 0.01 for policies and 1 for values (Huang et al. 2022,
            "The 37 Implementation Details of PPO", detail 2).
    """
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = out_gain is not None and position == len(sizes) - 2
        gain = out_gain if last and out_gain is not None else math.sqrt(2)
        layers.append(orthogonal(nn.Linear(inputs, outputs), gain))
        if not last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class Scale(nn.Module):
    """Images as floats: bytes divided by 255; channels last moved first."""

    def __init__(self, factor: float, channels_last: bool) -> None:
        super().__init__()
        self.factor, self.channels_last = factor, channels_last

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` or ``(N, H, W, C)`` of any dtype to float ``(N, C, H, W)``."""
        if self.channels_last:
            images = images.movedim(-1, 1)
        return images.float() * self.factor


def body(
    space: gym.Space, hidden: Sequence[int] = (64, 64), activation: Activation = "tanh"
) -> tuple[nn.Module, int]:
    """The body for an observation space, and the number of features it gives.

    Vectors go through an MLP of ``hidden`` widths; 84x84 stacks through the DQN paper's three
    convolutions (Mnih et al. 2015), small images (MinAtar's 10x10xC) through one of 16 channels
    (Young & Tian 2019), each followed by the ``hidden`` widths.

    Raises:
        ProblemError: for spaces that are neither vectors nor images (one-hot a Discrete first).
    """
    shape = space.shape if isinstance(space, gym.spaces.Box) else None
    if any(width < 1 for width in hidden):
        raise ProblemError(f"hidden: {list(hidden)} must be positive widths")
    if shape is None or len(shape) not in (1, 3):
        raise ProblemError(f"observations are {space}: only vectors and images can be learned from")
    if len(shape) == 1:
        return mlp([shape[0], *hidden], activation), hidden[-1] if hidden else shape[0]
    channels_last = shape[-1] <= shape[0]  # frame stacks are (4, 84, 84)
    channels = shape[-1] if channels_last else shape[0]
    large = min(sorted(shape)[1:]) >= 36
    factor = 1 / 255 if space.dtype == np.uint8 else 1.0
    plan = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, 3, 1)]
    layers: list[nn.Module] = [Scale(factor, channels_last)]
    for width, kernel, stride in plan:
        layers += [orthogonal(nn.Conv2d(channels, width, kernel, stride)), nn.ReLU()]
        channels = width
    layers.append(nn.Flatten())
    convolutions = nn.Sequential(*layers)
    with torch.no_grad():
        features = convolutions(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(convolutions, mlp([features, *hidden], activation)), (
        hidden[-1] if hidden else features
    )


def flatten_parameters(module: nn.Module) -> nn.Parameter:
    """Move all parameters into one flat vector, of which they become views; return that vector.

    An optimiser step then is one fused kernel over one tensor, and a gradient norm one reduction:
    for networks of a few thousand weights that is a third of the whole update. Gradients are views
    of the vector's ``grad`` as well, so zero them in place (``flat.grad.zero_()``).
    """
    parameters = list(module.parameters())
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    offset = 0
    for parameter in parameters:
        end = offset + parameter.numel()
        parameter.data = flat.data[offset:end].view_as(parameter)
        parameter.grad = flat.grad[offset:end].view_as(parameter)
        offset = end
    return flat


def clip_gradient(gradient: Tensor, max_norm: float) -> None:
    """Scale one flat gradient in place to a norm of at most ``max_norm``."""
    gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))


# One layer of an MLP as numpy sees it: weight (in, out), bias, the activation behind it.
NumpyLayer = tuple[np.ndarray, np.ndarray, Activation | None]


class NumpyMLP:
    """The forward pass of an MLP in numpy, over the same memory as torch's weights.

    Acting on a handful of observations costs torch five times the arithmetic in dispatch, numpy
    does not. The views follow every update of the weights, and are taken anew when the weights
    move (`flatten_parameters`, a copy of the network).

    Args:
        modules: what the observations go through, in order: linear layers and activations.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.address = 0
        self.layers: list[NumpyLayer] = []

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """``(N, in)`` to ``(N, out)``."""
        address = next(self.modules[-1].parameters()).data_ptr()
        if address != self.address:
            self.address, self.layers = address, _numpy_layers(self.modules)
        for weight, bias, activation in self.layers:
            inputs = inputs @ weight
            inputs += bias
            if activation == "tanh":
                np.tanh(inputs, out=inputs)
            elif activation == "relu":
                np.maximum(inputs, 0.0, out=inputs)
        return inputs


def _numpy_layers(networks: Sequence[nn.Module]) -> list[NumpyLayer]:
    layers: list[NumpyLayer] = []
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, nn.Linear):
            weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
            layers.append((weight.T, bias, None))
        elif isinstance(module, Tanh | nn.ReLU):
            layers[-1] = (*layers[-1][:2], "tanh" if isinstance(module, Tanh) else "relu")
        elif not isinstance(module, nn.Sequential):
            raise TypeError(f"{type(module).__name__} has no numpy form")
    return layers
