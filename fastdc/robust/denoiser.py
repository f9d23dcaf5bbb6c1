"""The classifier's network as a torch module for gradients."""

import copy
from typing import Any, Protocol

import torch
from torch import nn

from fastdc.backends import AbstractNetwork, TorchNetwork
from fastdc.bundle import Model
from fastdc.support import BackendError


class ModelAndNetwork(Protocol):
    """The part of a ``DiffusionClassifier`` that this wing uses."""

    @property
    def model(self) -> Model:
        """The model: shapes, classes, schedule, parameterisation, defaults."""

    @property
    def network(self) -> AbstractNetwork:
        """The network; gradients need a ``TorchNetwork``."""


def denoiser_of(classifier: ModelAndNetwork) -> nn.Module:
    """The network as a module in evaluation mode that shares the classifier's weights and computes no gradient of them.

    The module's structure is copied, its tensors are not. Moving the copy to another device or type therefore leaves
    the classifier alone, and a graph keeps fewer activations because no weight needs a gradient.

    Raises:
        BackendError: The classifier does not run on the torch backend.
    """
    network = classifier.network
    if not isinstance(network, TorchNetwork):
        raise BackendError(f"gradients need backend torch: load the model with it, got backend {network.backend}")
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.module.parameters()}
    shared |= {id(buffer): buffer for buffer in network.module.buffers()}
    return copy.deepcopy(network.module, shared).eval()


def place_of(denoiser: nn.Module, fallback: str = "cpu") -> tuple[torch.device, torch.dtype]:
    """The device and the element type of a network's first weight; `fallback` and float32 if it has no weights."""
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device(fallback), torch.float32
