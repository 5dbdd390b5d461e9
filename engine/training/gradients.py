"""Gradients of parameters as tensors that are there."""

from torch import Tensor


def gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter, to be changed in place; raises RuntimeError where no backward pass made one."""
    if parameter.grad is None:
        raise RuntimeError("a parameter has no gradient, expected a backward pass before")
    return parameter.grad
