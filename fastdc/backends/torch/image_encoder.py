"""An encoder that is a torch module, for latent models that were not exported."""

from typing import Any

from fastdc.support import Float32

BATCH = 4
"""Images encoded at a time: the activations of an encoder take tens of megabytes per image of 512 x 512."""


class ModuleEncoder:
    """Encodes images with a torch module on the CPU; implements ``AbstractEncoder``.

    Args:
        module: forward(images float32 (b, C, H, W)) -> latents (b, c, h, w).
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def encode(self, images: Float32) -> Float32:
        """Latents float32 (n, c, h, w) of images float32 (n, C, H, W) in the model's value range."""
        import torch

        with torch.inference_mode():
            parts = [self._module(part).float().cpu() for part in torch.split(torch.from_numpy(images), BATCH)]
        latents: Float32 = torch.cat(parts).numpy()
        return latents
