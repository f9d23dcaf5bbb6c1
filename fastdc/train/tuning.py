"""Fine-tuning of a CLIP or SigLIP folder on labelled images, into a new folder of the same kind.

While it trains, ``.NAME.training`` beside the new folder NAME holds checkpoint.safetensors: the weights and the
optimizer's state, with the step and the recipe in its header. The finished folder gets its name in one step, and the
checkpoint is removed. What is random depends on the seed and the step alone, so a resumed training ends as another.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.bundle import Prompts, bundle_place, prompts_of, put_in_place
from fastdc.data import LabelledPictures, load_pictures
from fastdc.support import InputError, ProcessLock, check_installed, checks, one_line, shown, whole_file
from fastdc.train.contrastive import CaptionedImages, ContrastiveRecipe, ContrastiveTraining
from fastdc.train.stop_signals import StopSignals

if TYPE_CHECKING:
    from fastdc.sources import ImageTextModel

CLIP_TEMPLATE = "a photo of a {}"
"""The text that the name of a class fills, as Pearson et al. (arXiv 2508.20783) have it."""

_KINDS, _VILT = ("clip", "siglip", "siglip2"), "vilt"
_CHECKPOINT = "checkpoint.safetensors"
_STATES = ("exp_avg", "exp_avg_sq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is fine-tuned, on what, and how.

    Attributes:
        model: Folder of transformers with the CLIP or SigLIP to begin with.
        data: Labelled images, as for :func:`fastdc.data.load_pictures`; of splits, "train" is taken.
        out: The folder to make.
        recipe: The recipe; the default is that of Pearson et al. (arXiv 2508.20783).
        template: The text of a class, with {} for its name.
        prompts: In place of `template`, one text for each class of `data`.
        split: Name of the split of `data`.
        skip_bad: Whether image files that cannot be used are left out.
        max_pixels: Most pixels of one image.
        device: "cpu", "cuda", "cuda:N" or "auto".
        threads: Number of CPU threads; None: torch's choice.
    """

    model: str | Path
    data: str | Path
    out: str | Path
    recipe: ContrastiveRecipe = dataclasses.field(default_factory=ContrastiveRecipe)
    template: str = CLIP_TEMPLATE
    prompts: Prompts | None = None
    split: str | None = None
    skip_bad: bool = False
    max_pixels: int | None = None
    device: str = "cpu"
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class TuningSummary:
    """How a fine-tuning ended.

    Attributes:
        path: The new folder; of an unfinished training, the one that it will make.
        step: Number of steps done.
        steps: Number of all steps.
        stopped_by: Name of the signal that stopped it; None if it is finished.
        loss: Mean loss of the last epoch that was begun.
        seconds: Seconds of this call's training.
        images: Number of training images.
    """

    path: Path
    step: int
    steps: int
    stopped_by: str | None
    loss: float
    seconds: float
    images: int


def is_image_text(folder: str | Path) -> bool:
    """Whether a folder holds a CLIP or SigLIP, or a ViLT, which cannot be fine-tuned, by its config alone.

    Args:
        folder: Any path.

    Example:
        >>> from fastdc.train import is_image_text
        >>> is_image_text(folder)
        False
    """
    return _kind_of(folder) in (*_KINDS, _VILT)


def _kind_of(folder: str | Path) -> Any:
    """What the config of a folder of transformers says it is; None without one."""
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_bytes()) if file.is_file() and file.stat().st_size < 2**22 else None
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def tune_image_text(
    tuning: Tuning,
    *,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> TuningSummary:
    """Fine-tunes a CLIP or SigLIP on images whose classes are texts, with the loss of :mod:`fastdc.train.contrastive`.

    Ctrl-C or SIGTERM ends the current step, writes a checkpoint and returns; `resume` goes on from there.

    Args:
        tuning: Model, data and recipe.
        resume: Whether to go on from the checkpoint of an unfinished training.
        progress: Called with the number of steps done and of all, after each.
        notify: Called with a line for each conversion of images, and for each epoch.

    Raises:
        InputError: Images, classes or options cannot be used, `out` exists, or there is nothing to resume.
        BundleError: The model's folder cannot be used.
        BackendError: There is no such device.
        MissingDependencyError: torch or transformers is not installed.

    Example:
        >>> from fastdc import testing, train
        >>> np.savez(folder / "data.npz", images=images, labels=labels)
        >>> how = {"data": folder / "data.npz", "out": folder / "tuned", "recipe": train.ContrastiveRecipe(epochs=1)}
        >>> train.tune_image_text(train.Tuning(model=testing.tiny_image_text(folder / "clip", "clip"), **how)).images
        20
    """
    if _kind_of(tuning.model) == _VILT:
        raise InputError(f"{tuning.model}: a ViLT cannot be fine-tuned here: expected a CLIP or SigLIP")
    place, say = Path(tuning.out), notify or (lambda line: None)
    threads = None if tuning.threads is None else checks.whole("threads", tuning.threads)
    with _kept(place, resume):
        check_installed("torch", extra="train")
        check_installed("transformers", extra="export")
        from fastdc.sources import DUAL, open_image_text

        model = open_image_text(tuning.model, DUAL, device=tuning.device)
        data = load_pictures(
            tuning.data, split=tuning.split, natural="train", skip_bad=tuning.skip_bad, max_pixels=tuning.max_pixels
        )
        for line in data.notes:
            say(f"note: {line}")
        texts = _texts(data, tuning.template, tuning.prompts)
        model.check_texts(texts)
        pictures = data.pictures
        captioned = CaptionedImages(lambda batch: model.pixels([pictures[i] for i in batch]), data.labels, texts)
        training = ContrastiveTraining(model, captioned, tuning.recipe)
        origin = {"recipe": dataclasses.asdict(tuning.recipe), "model": model.sha256, "data": _digest(data, texts)}
        folder = _Folder(place, model, training, origin)
        if resume:
            folder.restore()
        say(f"{model.kind} {model.name}: {len(data)} images of {len(texts)} texts, {training.steps} steps")
        return folder.run(threads, len(data), progress, say)


class _Folder:
    """The folder that a training makes, and what it keeps until then."""

    def __init__(
        self, place: Path, model: "ImageTextModel", training: ContrastiveTraining, origin: dict[str, Any]
    ) -> None:
        self._place, self._model, self._training, self._origin = place, model, training, origin
        self._staging = _staging(place)
        self._names = {id(one): name for name, one in model.network.named_parameters()}

    def run(
        self,
        threads: int | None,
        images: int,
        progress: Callable[[int, int], None] | None,
        say: Callable[[str], None],
    ) -> TuningSummary:
        """Trains on, and makes the folder unless a signal comes."""
        import torch

        training, start, losses, epoch = self._training, time.perf_counter(), list[float](), 0
        before = torch.get_num_threads()
        torch.set_num_threads(before if threads is None else threads)
        try:
            with StopSignals() as signals:
                for now, loss in training.run():
                    if now != epoch:
                        if losses:
                            say(f"epoch {epoch}: loss {np.mean(losses):.4f}")
                            with signals.held():
                                self.save()
                        losses, epoch = [], now
                    losses.append(loss)
                    if progress is not None:
                        progress(training.step, training.steps)
                    if signals.stopped():
                        break
                with signals.held():
                    if training.step < training.steps:
                        self.save()
                    else:
                        self.finish()
                stopped = signals.received[0] if training.step < training.steps else None
        finally:
            torch.set_num_threads(before)
        seconds, mean = time.perf_counter() - start, float(np.mean(losses)) if losses else float("nan")
        return TuningSummary(self._place, training.step, training.steps, stopped, mean, seconds, images)

    def save(self) -> None:
        """Writes the checkpoint."""
        from safetensors.torch import save

        training = self._training
        tensors = {f"model.{name}": one.detach() for name, one in self._model.network.named_parameters()}
        for parameter, state in training.optimizer.state.items():
            for key in _STATES:
                tensors[f"{key}.{self._names[id(parameter)]}"] = state[key]
        header = {"origin": json.dumps(self._origin), "step": str(training.step)}
        contiguous = {name: one.cpu().contiguous() for name, one in tensors.items()}
        with whole_file(self._staging / _CHECKPOINT) as file:
            file.write(save(contiguous, header))

    def restore(self) -> None:
        """Goes on from the checkpoint.

        Raises:
            InputError: There is none, or it is damaged, or of another model, recipe or data.
        """
        import torch
        from safetensors import safe_open

        file = self._staging / _CHECKPOINT
        if not file.is_file():
            raise InputError(f"{self._place} has no checkpoint to resume: expected {file}")
        try:
            with safe_open(str(file), framework="pt") as opened:
                header = opened.metadata()
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            origin, step = json.loads(header["origin"]), int(header["step"])
        except Exception as error:  # SafetensorError, OSError, KeyError, ValueError
            raise InputError(f"{file} cannot be read: {one_line(error)}") from None
        other = next((name for name, value in self._origin.items() if origin.get(name) != value), None)
        if other is not None:
            raise InputError(f"{self._place} was begun with another {other}: expected the same to resume it")
        training = self._training
        with torch.no_grad():
            for name, parameter in self._model.network.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                states = {key: tensors[f"{key}.{name}"] for key in _STATES if f"{key}.{name}" in tensors}
                if states:
                    moved = {key: one.to(parameter.device) for key, one in states.items()}
                    count = torch.tensor(float(step), device=parameter.device)
                    training.optimizer.state[parameter] = {"step": count, **moved}
        training.step = step

    def finish(self) -> None:
        """Writes the folder, which gets its name in one step, and removes the checkpoint."""
        new = self._staging / "new"
        shutil.rmtree(new, ignore_errors=True)
        self._model.save(new)
        with bundle_place(self._place) as place:
            put_in_place(place, {file.name: file for file in new.iterdir()})
        shutil.rmtree(self._staging)


def _staging(place: Path) -> Path:
    return place.with_name(f".{place.name}.training")


@contextmanager
def _kept(place: Path, resume: bool) -> Iterator[None]:
    """Keeps the place of a new folder for this process."""
    if not place.name:
        raise InputError(f"{shown(str(place))} cannot be made: expected the path of a new folder")
    if place.exists():
        raise InputError(f"{place} exists already: expected the path of a new folder")
    staging = _staging(place)
    if resume and not staging.is_dir():
        raise InputError(f"{place} has no checkpoint to resume: expected {staging / _CHECKPOINT}")
    if not resume and (staging / _CHECKPOINT).exists():
        raise InputError(f"{place} was begun and is not finished: resume it (--resume), or remove {staging}")
    made = not staging.exists()
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{place} cannot be made: {error.strerror}") from None
    try:
        with ProcessLock(staging.with_name(f"{staging.name}.lock"), place):
            yield
    finally:
        if made and staging.is_dir() and not any(staging.iterdir()):
            staging.rmdir()


def _texts(data: LabelledPictures, template: str, prompts: Prompts | None) -> tuple[str, ...]:
    """One text for each class.

    Raises:
        InputError: The template cannot be used, or the prompts are not one for each class.
    """
    if prompts is None:
        return prompts_of(data.class_names, (template,)).texts
    text_of = {prompts.class_names[k]: text for text, k in zip(prompts.texts, prompts.class_of, strict=True)}
    if len(text_of) < len(prompts.texts):
        raise InputError("prompts must be one text for each class, got several for a class")
    lost = next((name for name in data.class_names if name not in text_of), None)
    if lost is not None:
        raise InputError(f"prompts must have a text for each class of the images, got none for {shown(lost)}")
    return tuple(text_of[name] for name in data.class_names)


def _digest(data: LabelledPictures, texts: tuple[str, ...]) -> str:
    """The sha256 of images, classes and texts."""
    whole = hashlib.sha256(json.dumps([texts, data.labels.tolist()]).encode())
    for one in data.pictures:
        whole.update(str(one.shape).encode())
        whole.update(one.tobytes())
    return whole.hexdigest()
