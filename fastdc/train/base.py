"""What a run begins with besides its own new weights: a model to fine-tune, or the image encoder of a latent model.

A base is read again when a run is resumed or exported; its files stay where they are. The run keeps the sha256 of its
weights, and so refuses another one. There are three kinds:

* A model of fastdc, a bundle with torch weights or a run folder: its architecture is in its config.
* A class-conditional model of another tool: all of its weights are trained, with an embedding of the new classes.
* A text-conditional model: a LoRA is trained; the new classes are prompts.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.bundle import (
    MANIFEST,
    WEIGHTS,
    Prompts,
    SeenImages,
    build_network,
    find_model,
    load_bundle,
    prompts_of,
    shipped_models,
)
from fastdc.diffusion import CosineSchedule, EDMSchedule
from fastdc.support import BundleError, InputError, check_installed, one_line
from fastdc.train.config import TEMPLATE, TrainConfig
from fastdc.train.presets import preset_for
from fastdc.train.run import RUN_FORMAT, RunFolder, RunInfo
from fastdc.train.run_model import run_model

_MODEL_OF = {"unet2d": "unet", "mlp": "mlp", "unet2d_cross": "unet-cross", "dit": "dit"}
"""Models of recipes, by the kinds of their networks."""

# Words that stand in for the classes until the data have been read.
_ANY_CLASSES = ("cat", "dog")

_EDM_P_MEAN, _EDM_P_STD = -1.2, 1.2  # table 1 of EDM, with which its published models were trained

_OWN_LR = 1e-3  # as small networks are trained from scratch


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """An open base.

    Attributes:
        kind: "own" (a model of fastdc), "classes", "prompts" or "vae" (an encoder alone).
        source: The model as ``fastdc.sources`` describes it, with its own classes; None for an encoder alone.
        encoder: The module that turns images in [-1, 1] into latents; None if the network works on images.
        image_shape: Shape (c, h, w) to which images are converted.
        digest: sha256 of all weights.
        origin: Where it comes from, as plain values without local paths.
        network: ``{"kind": ..., "config": ...}`` of a model of fastdc, as in :class:`RunInfo`; otherwise None.
        levels: Band of noise levels at which a model of fastdc classifies; otherwise None.
        seen: The images that a model of fastdc has seen, as far as they are known.
    """

    kind: str
    source: Any
    encoder: Any
    image_shape: tuple[int, int, int]
    digest: str
    origin: dict[str, str | int | float]
    network: dict[str, Any] | None = None
    levels: tuple[float, float] | None = None
    seen: SeenImages = dataclasses.field(default_factory=SeenImages, repr=False)

    def for_classes(self, class_names: Sequence[str], config: TrainConfig) -> tuple[Any, dict[str, float]]:
        """The model for other classes, as a ``Source``; its own network is changed, and no weight is trained yet.

        Args:
            class_names: Names of the classes.
            config: The recipe, whose template or prompts describe them to a text-conditional model.

        Returns:
            The model, and the scales of the parameters that hold classes, by name, as ``with_classes`` gives them.

        Raises:
            InputError: The classes of this network cannot be replaced, a class has no prompt, or prompts of two classes
                are the same to it.
        """
        from fastdc.sources import with_classes, with_prompts

        if self.kind == "prompts":
            return with_prompts(self.source, _described(class_names, config)), {}
        return with_classes(self.source, class_names)

    def check_same(self, info: RunInfo) -> None:
        """Refuses a base with other weights than the one that a run began with.

        Raises:
            InputError: It is another one.
        """
        if info.base.get("sha256") != self.digest:
            name = info.config.base or info.config.vae
            raise InputError(f"{name} is not what the run began with: its weights have another sha256")

    def describe(self) -> dict[str, str | int | float]:
        """What a run notes of its base."""
        return {"kind": self.kind, "sha256": self.digest, **self.origin}


def open_base(config: TrainConfig) -> tuple[TrainConfig, Base]:
    """Opens the base of a recipe that has one.

    Returns:
        The recipe with what follows from the base: its full path or the hub's commit, and the constants of its
        network; and the base.

    Raises:
        InputError: There is none, it is not trainable, or the recipe does not fit it.
        BundleError: It is corrupt, hostile, or of an unsupported kind.
        MissingDependencyError: A package is not installed.
    """
    if config.vae is not None:
        return _open_vae(config, config.vae)
    assert config.base is not None
    if config.base in shipped_models() or (Path(config.base) / MANIFEST).is_file():
        base, levels = _own_bundle(config.base), None
    elif _is_run(Path(config.base)):
        base, levels = _own_run(Path(config.base))
    else:
        base, levels = _foreign(config, config.base), None
    return _completed(config, base, levels), base


def _completed(config: TrainConfig, base: Base, levels: tuple[float, float] | None) -> TrainConfig:
    """The recipe with the place of the base, and with the constants and noise levels of its network.

    Args:
        config: The recipe.
        base: The base.
        levels: p_mean and p_std with which it was trained, if they are known.
    """
    model = base.source.model
    assert config.base is not None
    option = next((name for name in ("rank", "template", "prompts") if getattr(config, name) is not None), None)
    if base.kind != "prompts" and option is not None:
        raise InputError(f"{option} is for text-conditional models, but {model.name} has classes of its own")
    kept: dict[str, Any] = {
        "base": _pinned(config.base, base.origin),
        "fit": config.fit or (None if model.fit == "crop" else model.fit),
    }
    if model.parameterization.kind == "edm":
        if base.network is not None:
            preset = preset_for(_MODEL_OF[base.network["kind"]], *model.image_shape[1:])
            levels = levels or (preset.p_mean, preset.p_std)
            kept["timestep_scale"] = model.schedule.timestep_scale
            kept["lr"] = _OWN_LR if config.lr is None else config.lr
        mean, std = levels or (_EDM_P_MEAN, _EDM_P_STD)
        kept |= {"p_mean": mean if config.p_mean is None else config.p_mean}
        kept |= {"p_std": std if config.p_std is None else config.p_std}
        sigma_data = model.parameterization.sigma_data
        if config.sigma_data not in (None, sigma_data):
            raise InputError(f"sigma_data must be that of {model.name}, {sigma_data:g}, got {config.sigma_data:g}")
        kept["sigma_data"] = sigma_data
    elif config.sigma_data is not None:
        raise InputError(f"sigma_data is for EDM networks, but {model.name} predicts {model.parameterization.kind}")
    if (config.p_mean is None) != (config.p_std is None) and "p_mean" not in kept:
        raise InputError("p_mean and p_std must be given together for this model, got one of them")
    return dataclasses.replace(config, **kept)


def _described(class_names: Sequence[str], config: TrainConfig) -> Prompts:
    """The text of each class: its own, or its name in the template."""
    if config.prompts is None:
        return prompts_of(class_names, (config.template or TEMPLATE,))
    texts = dict(config.prompts)
    unknown = next((name for name in class_names if name not in texts), None)
    if unknown is not None:
        raise InputError(f"prompts must have a text for every class of the data, got none for {unknown!r:.80}")
    return Prompts(tuple(texts[name] for name in class_names), tuple(range(len(class_names))), tuple(class_names))


def _pinned(text: str, origin: dict[str, str | int | float]) -> str:
    """The place of a base, such that it names the same model later and from anywhere."""
    if text.startswith("hf://"):
        return f"{text.partition('@')[0]}@{origin['revision']}" if "revision" in origin else text
    return text if text in shipped_models() else str(Path(text).absolute())


def _open_vae(config: TrainConfig, text: str) -> tuple[TrainConfig, Base]:
    from fastdc.sources import open_vae

    assert config.size is not None  # checked in the recipe
    encoder, origin = open_vae(text)
    if config.size % encoder.factor:
        raise InputError(f"size must be divisible by {encoder.factor} for {Path(text).name}, got {config.size}")
    shape = (3, config.size, config.size)
    base = Base("vae", None, encoder, shape, _digest([encoder]), origin)
    return dataclasses.replace(config, vae=_pinned(text, origin)), base


def _foreign(config: TrainConfig, text: str) -> Base:
    """A model in the format of another tool."""
    from fastdc.sources import is_text_conditional, open_source

    texts = is_text_conditional(text)
    if texts:
        check_installed("peft", extra="export")
    prompts = prompts_of(_ANY_CLASSES) if texts else None
    source = open_source(text, prompts=prompts, image_size=config.size)
    modules = [source.denoiser, source.encoder, None if source.text is None else source.text.module]
    model = source.model
    if model.value_range != (-1.0, 1.0):
        raise InputError(f"{model.name} must work on images in [-1, 1] to be trained, got {model.value_range}")
    origin = {"family": source.family, **source.provenance}
    kind = "prompts" if texts else "classes"
    return Base(kind, source, source.encoder, model.image_shape, _digest(filter(None, modules)), origin)


def _own_bundle(text: str) -> Base:
    """A bundle of fastdc with its torch weights."""
    from fastdc.backends import TorchNetwork

    bundle = load_bundle(find_model(text))
    if WEIGHTS not in bundle.files:
        raise InputError(
            f"bundle {bundle.name} has no torch weights, so it cannot be trained: start from the run or model that it "
            "was exported from, or from digits or digits-mlp"
        )
    network = bundle.manifest["network"]
    base = _own(bundle.model, TorchNetwork.from_bundle(bundle).module, network, {"source": bundle.name})
    return dataclasses.replace(base, seen=bundle.seen)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run of fastdc."""
    file = folder / "config.json"
    return file.is_file() and RUN_FORMAT.encode() in file.read_bytes()[:1000]


def _own_run(path: Path) -> tuple[Base, tuple[float, float] | None]:
    """The averaged weights of a run, and its p_mean and p_std."""
    folder = RunFolder(path)
    info = folder.info()
    if info.base:
        raise InputError(f"{path} is a run that began with {info.config.base or info.config.vae}: start from that")
    weights, _, _ = folder.averaged()
    network = build_network(info.network["kind"], info.network["config"])
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} holds weights that do not fit its network: {one_line(error)}") from None
    recipe = info.config
    levels = None if recipe.p_mean is None or recipe.p_std is None else (recipe.p_mean, recipe.p_std)
    base = _own(run_model(info), network, info.network, {"source": path.name})
    return dataclasses.replace(base, seen=folder.seen(info)), levels


def _own(model: Any, module: Any, network: dict[str, Any], origin: dict[str, str | int | float]) -> Base:
    """A model of fastdc, which must be one that ``fastdc train`` makes."""
    from fastdc.sources import Source

    schedule, usual = model.schedule, EDMSchedule()
    if model.transform is not None or isinstance(schedule, CosineSchedule):
        raise InputError(
            f"{model.name} works on wavelets or on the cosine schedule, and only models of prediction edm without a "
            "transform can be fine-tuned: --resume continues its run"
        )
    ends = (usual.sigma_min, usual.sigma_max, 0.0)
    if (
        model.parameterization.kind != "edm"
        or (schedule.sigma_min, schedule.sigma_max, schedule.timestep_offset) != ends
        or model.latent_shape is not None
        or model.null_class != len(model.class_names)
    ):
        raise BundleError(f"{model.name} is no model of fastdc train, so it cannot be trained further")
    source = Source("module", model, module.eval().requires_grad_(False))
    return Base("own", source, None, model.image_shape, _digest([module]), origin, network, model.defaults.levels)


def _digest(modules: Iterable[Any]) -> str:
    """sha256 of the weights of modules, by name."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()
