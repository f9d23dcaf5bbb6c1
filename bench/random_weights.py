"""Random weights for networks without an initialisation of their own; outputs are finite and of order one."""

from torch import nn


def fill(network: nn.Module) -> None:
    """Fills a SongUNet from torch's global generator: weights as 1 / sqrt(fan-in), norms near 1, biases near 0."""
    for name, value in network.state_dict().items():
        if name.endswith("resample_filter"):
            value.fill_(1 / value.numel())
        elif value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
        else:
            value.normal_(float("norm" in name and name.endswith("weight")), 0.1)
