"""Latents of the images of a run: encoded once, kept in the run folder, and used in place of the images.

Mirrored images are encoded too if the recipe mirrors, because the latent of a mirrored image is not its mirrored
latent. The file ``latents.safetensors`` states which images and which encoder it is of, and its own sha256. A file of
others, or one that is damaged, is made again.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdc.support import Float32, write_whole
from fastdc.train.base import Base
from fastdc.train.batches import to_model
from fastdc.train.dataset import TrainingData
from fastdc.train.run import RunFolder

_BATCH = 8


def latents_of(
    data: TrainingData,
    base: Base,
    *,
    flip: bool,
    folder: RunFolder,
    device: torch.device,
    say: Callable[[str], None],
) -> TrainingData:
    """The data with latents in place of the images, float32, and with their own standard deviation.

    Args:
        data: The data.
        base: What the run begins with, which has an image encoder.
        flip: Whether mirrored images are needed.
        folder: The run folder, which may hold the latents already; otherwise they are written there.
        device: Where to encode.
        say: Told what is being done.
    """
    key = repr((data.digest, data.val_digest, base.digest, flip))
    found = _read(folder, key)
    if found is None:
        say(f"encoding {len(data.images)} images into latents{', each mirrored too' if flip else ''}")
        wanted = {"images": data.images, "val": data.val_images}
        if flip:
            wanted["mirrored"] = data.images[..., ::-1]
        found = {name: _encoded(base.encoder, images, device) for name, images in wanted.items()}
        base.encoder.cpu()
        _write(folder, key, found)
    images = found["images"]
    return dataclasses.replace(
        data,
        images=images,
        val_images=found["val"],
        mirrored=found.get("mirrored"),
        sigma_data=float(f"{float(images.std(dtype=np.float64)):.4g}"),
    )


@torch.inference_mode()
def _encoded(encoder: nn.Module, images: NDArray[Any], device: torch.device) -> Float32:
    """Latents float32 (n, c, h, w) of uint8 images."""
    encoder = encoder.to(device)
    some = images if len(images) else np.zeros_like(images, shape=(1, *images.shape[1:]))  # for the shape
    parts = []
    for start in range(0, len(some), _BATCH):
        pixels = torch.from_numpy(np.ascontiguousarray(some[start : start + _BATCH]))
        parts.append(encoder(to_model(pixels.to(device))).float().cpu().numpy())
    # Convolutions may leave another order of axes in memory, which files and noise would follow.
    return np.ascontiguousarray(np.concatenate(parts)[: len(images)])


def _sha256(latents: Mapping[str, Float32]) -> str:
    digest = hashlib.sha256()
    for name in sorted(latents):
        digest.update(repr((name, latents[name].shape)).encode())
        digest.update(np.ascontiguousarray(latents[name]).data)
    return digest.hexdigest()


def _write(folder: RunFolder, key: str, latents: dict[str, Float32]) -> None:
    from safetensors.numpy import save

    write_whole(folder.latents_file, save(latents, metadata={"of": key, "sha256": _sha256(latents)}))


def _read(folder: RunFolder, key: str) -> dict[str, Float32] | None:
    """The latents in a run folder; None if they are of others, or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder.latents_file, framework="np") as file:
            known = file.metadata() or {}
            if known.get("of") != key:
                return None
            latents = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError):
        return None
    return latents if _sha256(latents) == known.get("sha256") else None
