"""Random weights for networks that are made to be filled from a file: what comes out is finite and of order one."""

from torch import nn


def fill(network: nn.Module) -> None:
    """Fills a SongUNet from torch's global generator: products as 1 / sqrt(fan-in), norms about 1, biases about 0."""
    for name, value in network.state_dict().items():
        if name.endswith("resample_filter"):
            value.fill_(1 / value.numel())
        elif value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
        else:
            value.normal_(float("norm" in name and name.endswith("weight")), 0.1)
