"""Recognises the kind of a model and opens it: a diffusers folder, here or on the hub, or an NVlabs EDM pickle."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdc.bundle import Prompts
from fastdc.sources.base import Source
from fastdc.sources.image_size import ImageSize
from fastdc.sources.lora import Lora
from fastdc.sources.pipelines import TEXT_FAMILIES, family_of
from fastdc.support import InputError

if TYPE_CHECKING:
    from fastdc.sources.folder import ModelFolder


def open_source(
    path: str | Path,
    *,
    prompts: Prompts | None = None,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize = None,
    null_class: bool | None = None,
    lora: Sequence[Lora] = (),
    variant: str | None = None,
    scheduler: str | Path | None = None,
) -> Source:
    """Opens a diffusion model in its own format; nothing in it is executed.

    Args:
        path: A folder in diffusers' format, "hf://org/name[@revision]" of the HF hub, or an EDM ``.pkl`` file.
        prompts: The prompts that describe the classes, for text-conditional models.
        class_names: One name per class, for class-conditional models; default: the model's own names.
        image_size: Side or (height, width) of the images in pixels; default: the size that the model was trained on.
        null_class: Whether the last index of a class-conditional UNet means "no class"; default: only if there is one
            class name fewer than indices.
        lora: LoRAs to merge into a text-conditional model, in this order.
        variant: Variant of the weights, as "ema"; default: none, or else fp32, fp16, bf16, or the only one there is.
        scheduler: A scheduler_config.json, or a folder that holds one, to use in place of the model's own; a UNet
            without a pipeline needs it.

    Returns:
        The model, ready for ``fastdc.export.export_source``.

    Raises:
        InputError: An option does not fit the model, the model cannot be found, or prompts of two classes become the
            same tokens.
        BundleError: The model is corrupt, hostile, or of an unsupported kind.
        MissingDependencyError: A package of the extra export is not installed.

    Warns:
        PromptWarning: A prompt is longer than the text encoder reads, or is the same to it as another of its class.

    Example:
        >>> from fastdc.sources import open_source
        >>> from fastdc.testing import write_edm
        >>> open_source(write_edm(folder / "net.pkl", "adm"), class_names=("cat", "dog", "cow", "owl")).family
        'edm'
    """
    names = None if class_names is None else tuple(class_names)
    if str(path).endswith(".pkl"):
        others = {"prompts": prompts, "image_size": image_size, "null_class": null_class, "lora": lora or None}
        return _edm(path, names, **others, variant=variant, scheduler=scheduler)
    from fastdc.sources.folder import ModelFolder

    folder = ModelFolder.open(path, variant=variant, scheduler=scheduler)
    kind, family = folder.pipeline, family_of(folder.pipeline)
    if family in TEXT_FAMILIES:
        return _text(folder, prompts, names, image_size, null_class, lora)
    from fastdc.sources.class_conditional import open_dit, open_unet2d

    _refuse(f"a {kind}", prompts=prompts, lora=lora or None)
    if family == "dit":
        _refuse(f"a {kind}", null_class=null_class)
        return open_dit(folder, class_names=names, image_size=image_size)
    return open_unet2d(folder, class_names=names, image_size=image_size, null_class=null_class)


def is_text_conditional(path: str | Path) -> bool:
    """Whether the classes of a model are prompts. No weights are read; of a model of the hub, the index is fetched.

    Args:
        path: The model, as for :func:`open_source`.

    Raises:
        InputError: The model cannot be found.
        BundleError: The folder is broken, or its pipeline cannot be exported.

    Example:
        >>> from fastdc.sources import is_text_conditional
        >>> is_text_conditional("edm-cifar10-32x32-cond-vp.pkl")
        False
    """
    from fastdc.sources.folder import ModelFolder

    if str(path).endswith(".pkl"):
        return False
    return family_of(ModelFolder.open(path).pipeline) in TEXT_FAMILIES


def _edm(path: str | Path, names: tuple[str, ...] | None, **others: object) -> Source:
    """Opens an EDM pickle, which takes none of the other options."""
    from fastdc.sources.edm import open_edm

    _refuse("an EDM pickle", **others)
    return open_edm(path, class_names=names)


def _text(
    folder: "ModelFolder",
    prompts: Prompts | None,
    names: tuple[str, ...] | None,
    image_size: ImageSize,
    null_class: bool | None,
    lora: Sequence[Lora],
) -> Source:
    """Opens a text-conditional pipeline."""
    kind = folder.pipeline
    _refuse(f"a {kind}, whose classes are prompts", class_names=names, null_class=null_class)
    if prompts is None:
        raise InputError(
            f"{folder.name} is a {kind}: give the prompts that describe the classes (--prompts, --classes)"
        )
    if family_of(kind) == "stable-diffusion-3":
        from fastdc.sources.stable_diffusion_3 import open_stable_diffusion_3

        return open_stable_diffusion_3(folder, prompts=prompts, image_size=image_size, lora=lora)
    from fastdc.sources.stable_diffusion import open_stable_diffusion

    return open_stable_diffusion(folder, prompts=prompts, image_size=image_size, lora=lora)


def _refuse(what: str, **options: object) -> None:
    """Refuses options that do not fit a kind of model.

    Args:
        what: The kind of model, for the message.
        **options: The options by name, each None if it was not given.

    Raises:
        InputError: One of them was given.
    """
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} cannot be given for {what}")
