"""torch: the reference backend, for models without an exported graph, for gradients, and for CUDA devices.

``network`` runs a module, ``slots`` holds its buffers and streams, and ``image_encoder`` makes latents of images.
"""

from fastdc.backends.torch.image_encoder import ModuleEncoder
from fastdc.backends.torch.network import TorchNetwork

__all__ = ["ModuleEncoder", "TorchNetwork"]
