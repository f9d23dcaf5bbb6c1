"""Finds out what a model is, and opens it: a diffusers folder or hub id, or an NVlabs EDM pickle."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdc.bundle import Prompts
from fastdc.sources.base import Source
from fastdc.sources.lora import Lora
from fastdc.support import InputError

if TYPE_CHECKING:
    from fastdc.sources.folder import ModelFolder

ImageSize = int | tuple[int, int] | None


def open_source(
    path: str | Path,
    *,
    prompts: Prompts | None = None,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize = None,
    null_class: bool | None = None,
    lora: Sequence[Lora] = (),
) -> Source:
    """Opens a diffusion model in its own format; nothing in it is executed.

    Args:
        path: A folder in diffusers' format, a hub id such as "facebook/DiT-XL-2-256", or an EDM ``.pkl`` file.
        prompts: For text-conditional models: what to tell apart.
        class_names: For class-conditional models: one name a class; default: the model's own.
        image_size: Side or (height, width) of images in pixels; default: what the model was trained for.
        null_class: For class-conditional UNets: whether the last index stands for "no class"; default: as the classes
            say.
        lora: For text-conditional models: LoRAs to merge.

    Raises:
        InputError: An option does not go with the model, or it cannot be found.
        BundleError: The model is corrupt, hostile, or of a kind that is not supported.
        MissingDependencyError: A package of the extra export is not installed.
    """
    names = None if class_names is None else tuple(class_names)
    if str(path).endswith(".pkl"):
        from fastdc.sources.edm import open_edm

        _refuse("an EDM pickle", prompts=prompts, image_size=image_size, null_class=null_class, lora=lora or None)
        return open_edm(path, class_names=names)
    from fastdc.sources.folder import ModelFolder

    folder = ModelFolder.open(path)
    kind = folder.pipeline
    if kind in _TEXT:
        return _text(folder, prompts, names, image_size, null_class, lora)
    from fastdc.sources.class_conditional import open_dit, open_unet2d

    _refuse(f"a {kind}", prompts=prompts, lora=lora or None)
    if kind == "DiTPipeline":
        _refuse(f"a {kind}", null_class=null_class)
        return open_dit(folder, class_names=names, image_size=image_size)
    return open_unet2d(folder, class_names=names, image_size=image_size, null_class=null_class)


_TEXT = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")


def _text(
    folder: "ModelFolder",
    prompts: Prompts | None,
    names: tuple[str, ...] | None,
    image_size: ImageSize,
    null_class: bool | None,
    lora: Sequence[Lora],
) -> Source:
    """A text-conditional pipeline."""
    kind = folder.pipeline
    _refuse(f"a {kind}, whose classes are prompts", class_names=names, null_class=null_class)
    if prompts is None:
        raise InputError(
            f"{folder.name} is a {kind}: give the prompts that describe the classes (--prompts, --classes)"
        )
    if kind == "StableDiffusion3Pipeline":
        from fastdc.sources.stable_diffusion_3 import open_stable_diffusion_3

        return open_stable_diffusion_3(folder, prompts=prompts, image_size=image_size, lora=lora)
    from fastdc.sources.stable_diffusion import open_stable_diffusion

    return open_stable_diffusion(folder, prompts=prompts, image_size=image_size, lora=lora)


def _refuse(what: str, **options: object) -> None:
    """Refuses options that do not go with a kind of model.

    Raises:
        InputError: One is given.
    """
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name.replace('_', ' ')} cannot be given for {what}")


def is_text_conditional(path: str | Path) -> bool:
    """Whether a model's classes are prompts; False where there is no such model, which opening it says better.

    Raises:
        BundleError: A folder that is broken.
    """
    from fastdc.sources.folder import ModelFolder

    if str(path).endswith(".pkl"):
        return False
    return ModelFolder.open(path).pipeline in _TEXT
