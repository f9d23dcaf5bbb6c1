"""The run folder: the files of a training run, written so that a kill at any moment does no harm.

One process writes there at a time, and a file is replaced in one step. A checkpoint is one safetensors file that holds
the tensors, and the progress as JSON in its header, so that weights and step always agree. Reading a checkpoint
executes nothing.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastdc.bundle import SeenImages
from fastdc.support import BundleError, InputError, ProcessLock, one_line, strict_json, write_whole
from fastdc.train.best import Best
from fastdc.train.config import OPERATIONAL, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

RUN_FORMAT = "fastdc-run"
RUN_VERSION = 1

_CHOOSING = ("choosing_loss", "val_accuracy", "val_scored")  # what a line of the log has of the images that choose

PATIENCE = "patience"
"""What has stopped a run that no longer improved."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """How a training ended.

    Attributes:
        path: The run folder.
        step: Number of steps done.
        steps: Number of steps of the recipe.
        stopped_by: Name of the signal that stopped the run early, or "patience"; None if all steps are done.
        loss: Mean training loss in the last line of the log; None if there is no line.
        val_loss: Denoising loss of the averaged weights on the validation images; None without such images.
        parameters: Number of weights.
        seconds: Seconds of training, over all resumptions.
        val_accuracy: Share of validation images that the averaged weights classified rightly when they were last
            measured; None if they were not.
        best: The best checkpoint, which an export takes; None if none was measured.
    """

    path: Path
    step: int
    steps: int
    stopped_by: str | None
    loss: float | None
    val_loss: float | None
    parameters: int
    seconds: float
    val_accuracy: float | None = None
    best: Best | None = None

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the training has ended early because it no longer improved."""
        return self.step == self.steps or self.stopped_by == PATIENCE


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The content of a run's config.json.

    Attributes:
        config: The recipe.
        data_digest: sha256 of the training images, labels and class names.
        val_digest: sha256 of the validation images, labels and class names.
        source_digest: sha256 of both together, before a fraction was kept aside; empty if none was.
        images: Number of training images.
        val_images: Number of validation images.
        shape: Image shape (c, h, w).
        class_names: One name per class.
        sigma_data: Standard deviation of the data in [-1, 1], given or measured.
        network: ``{"kind": ..., "config": ...}`` for :func:`fastdc.bundle.build_network`.
        levels: Band of noise levels at which the network classifies, unless an export says otherwise.
        class_counts: Number of training images of each class; empty in runs of earlier versions.
        val_by_class: Whether validation images are in the order of their classes; not in runs of earlier versions.
        extended: Each change of the number of steps: (step at which the run was resumed, number of steps until then).
        base: What the run began with: its kind, the sha256 of its weights, and its origin; empty for a new network on
            images.
        seen: The training images, and those that choose the checkpoint; empty in runs of earlier versions.
        base_seen: What the model that the run began with had seen.
    """

    config: TrainConfig
    data_digest: str
    val_digest: str
    images: int
    val_images: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    sigma_data: float
    network: dict[str, Any]
    source_digest: str = ""
    levels: tuple[float, float] = (0.2, 2.0)
    class_counts: tuple[int, ...] = ()
    val_by_class: bool = False
    extended: tuple[tuple[int, int], ...] = ()
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen: SeenImages = dataclasses.field(default_factory=SeenImages, repr=False, compare=False)
    base_seen: SeenImages = dataclasses.field(default_factory=SeenImages, repr=False, compare=False)


def sample_shape(info: RunInfo) -> tuple[int, int, int]:
    """Shape (c, h, w) of what the new network of a run works on: of latents, or of the images.

    Args:
        info: Description of the run.

    Example:
        >>> from fastdc import train
        >>> np.savez(folder / "data.npz", images=images, labels=labels % 2)
        >>> recipe = train.TrainConfig(data=f"{folder}/data.npz", out=f"{folder}/run", model="mlp", width=8, steps=2)
        >>> train.sample_shape(train.RunFolder(train.train(recipe, progress=False).path).info())
        (1, 8, 8)
    """
    if info.base.get("kind") != "vae":
        return info.shape
    options = info.network["config"]
    channels, height, width = options.get("shape") or (options["in_channels"], *options["sample_size"])
    return channels, height, width


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        tensors: Tensors by name: ``model.``, ``ema.``, ``exp_avg.`` or ``exp_avg_sq.`` and the name of a parameter.
        progress: Step, seconds and losses.
    """

    tensors: "dict[str, Tensor]"
    progress: dict[str, Any]


_Number = TypeVar("_Number", int, float)


def _pair(values: Any, kind: Callable[[Any], _Number]) -> tuple[_Number, _Number]:
    """Two numbers from JSON."""
    low, high = map(kind, values)
    return low, high


class RunFolder:
    """Reads and writes one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.checkpoint_file = self.path / "checkpoint.safetensors"
        self.lora_file = self.path / "lora.safetensors"
        self.latents_file = self.path / "latents.safetensors"
        self.best_file = self.path / "best.safetensors"
        self.log_file = self.path / "log.jsonl"
        self.val_file = self.path / "val.npz"
        self._lock_file = self.path / ".lock"

    def check_free(self) -> None:
        """Checks that a new run can be started here.

        Raises:
            InputError: The folder holds a run, or other files.
        """

        def ours(file: Path) -> bool:
            return file in (self._lock_file, self.latents_file) or (file.name[0] == "." and file.suffix == ".tmp")

        try:
            if self.path.is_dir() and all(map(ours, self.path.iterdir())):
                return  # empty, or with what a process left that was killed as it began
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        if self.config_file.exists():
            raise InputError(f"{self.path} already holds a run: go on with --resume, or choose another folder")
        if self.path.exists():
            raise InputError(f"{self.path} exists and is not empty: choose another folder")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Creates the folder if needed and locks it for this process; removes empty folders it created on exit.

        Raises:
            InputError: Another process trains there, or the folder cannot be made or written to.
        """
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run folder {self.path} cannot be made: {error.strerror}") from error
        try:
            with ProcessLock(self._lock_file, self.path):
                yield
        finally:
            with suppress(OSError):  # raised where a folder is not empty
                for path in missing:
                    path.rmdir()

    def check_space(self, parameters: int) -> None:
        """Checks that there is room for the checkpoints of a network.

        Args:
            parameters: Number of weights.

        Raises:
            InputError: There is not.
        """
        # float32: weights, average and two moments; the average of the best; each beside the file that it replaces.
        needed = 4 * parameters * 2 * (4 + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise InputError(
                f"{self.path} needs room for {needed / 1e6:.3g} MB of checkpoints, and {free / 1e6:.3g} MB are free"
            )

    def create(self, info: RunInfo) -> None:
        """Writes config.json into a folder that is kept.

        Raises:
            InputError: The folder is taken.
        """
        self.check_free()
        self.write_info(info)

    def write_info(self, info: RunInfo) -> None:
        """Replaces config.json in one step. Paths are written in full, so that the run can be resumed from anywhere."""
        values = {"format": RUN_FORMAT, "version": RUN_VERSION, **dataclasses.asdict(info)}
        values |= {"seen": info.seen.to_dict(), "base_seen": info.base_seen.to_dict()}
        values["config"] = info.config.absolute().to_dict()
        write_whole(self.config_file, (json.dumps(values, indent=1) + "\n").encode())

    def info(self) -> RunInfo:
        """Reads config.json.

        Raises:
            InputError: There is no run here, it was written by a newer fastdc, or it is damaged.
        """
        try:
            values = strict_json(self.config_file.read_bytes(), self.config_file)
        except FileNotFoundError:
            raise InputError(f"{self.path} holds no training run (no config.json)") from None
        except OSError as error:
            raise InputError(f"{self.config_file} cannot be read: {error.strerror or error}") from error
        except BundleError as error:
            raise InputError(str(error)) from None
        if not isinstance(values, dict) or values.get("format") != RUN_FORMAT:
            raise InputError(f"{self.config_file} is not the config of a fastdc run")
        if values.get("version") != RUN_VERSION:
            raise InputError(f"{self.config_file} has version {values.get('version')}, this fastdc reads {RUN_VERSION}")
        try:
            return RunInfo(
                config=TrainConfig.from_dict(values["config"]),
                data_digest=str(values["data_digest"]),
                val_digest=str(values["val_digest"]),
                images=int(values["images"]),
                val_images=int(values["val_images"]),
                shape=tuple(values["shape"]),
                class_names=tuple(values["class_names"]),
                sigma_data=float(values["sigma_data"]),
                network=dict(values["network"]),
                # What runs of earlier versions do not have.
                source_digest=str(values.get("source_digest", "")),
                levels=_pair(values.get("levels", RunInfo.levels), float),
                class_counts=tuple(map(int, values.get("class_counts", ()))),
                val_by_class=values.get("val_by_class") is True,
                extended=tuple(_pair(change, int) for change in values.get("extended", ())),
                base=dict(values.get("base", {})),
                seen=SeenImages.from_dict(values.get("seen")),
                base_seen=SeenImages.from_dict(values.get("base_seen")),
            )
        except (KeyError, TypeError, ValueError, BundleError) as error:
            raise InputError(f"{self.config_file} is damaged: {one_line(error)}") from error

    def continued(self, wanted: RunInfo, val_digest_as_given: str) -> RunInfo:
        """The run here as it goes on: with the options of the new recipe that may change.

        Args:
            wanted: What the new recipe and the data would be as a new run.
            val_digest_as_given: The hash of its validation images in the order in which runs of earlier versions have
                them.

        Raises:
            InputError: A field of the recipe or the hash of the data differs; the message names the first.
        """
        found = self.info()
        if found.shape != wanted.shape:
            raise InputError(f"{self.path} was started with images of shape {found.shape}, got {wanted.shape}")
        # Runs of earlier versions may leave the width to the preset.
        was, now = found.config.for_shape(found.shape).to_dict(), wanted.config.to_dict()
        for name in was:
            if name not in OPERATIONAL and was[name] != now[name]:
                raise InputError(f"{self.path} was started with {name} = {was[name]}, cannot resume with {now[name]}")
        for what, before, after in (
            ("data", found.data_digest, wanted.data_digest),
            ("val", found.val_digest, wanted.val_digest if found.val_by_class else val_digest_as_given),
        ):
            if before != after:
                source = getattr(wanted.config, what)
                raise InputError(f"{self.path} was started with other {what} images than {source}: the hashes differ")
        kept = ("network", "levels", "extended")
        return dataclasses.replace(wanted, **{name: getattr(found, name) for name in kept})

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint in one step."""
        _write(self.checkpoint_file, checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, its tensors on the CPU; None if there is no checkpoint yet.

        Raises:
            InputError: The file is damaged.
        """
        return _read(self.checkpoint_file)

    def save_best(self, best: Best, average: "dict[str, Tensor]") -> None:
        """Replaces the best checkpoint in one step.

        Args:
            best: What was measured.
            average: The averaged weights by name of their parameter.
        """
        tensors = {f"ema.{name}": tensor.cpu().contiguous() for name, tensor in average.items()}
        _write(self.best_file, Checkpoint(tensors, dataclasses.asdict(best)))

    def load_best(self) -> tuple[Best, Checkpoint] | None:
        """The best checkpoint, with the averaged weights only; None if none was measured.

        Raises:
            InputError: The file is damaged.
        """
        found = _read(self.best_file)
        try:
            return None if found is None else (Best(**found.progress), found)
        except TypeError as error:
            raise InputError(f"{self.best_file} is damaged: {one_line(error)}") from error

    def averaged(self, wanted: str | None = None) -> "tuple[dict[str, Tensor], int, str]":
        """The averaged weights of a checkpoint by name, its number of steps, and a description of it.

        Args:
            wanted: "best" or "last"; None: the best if one was measured.

        Raises:
            InputError: There is no such checkpoint, or it is damaged.
        """
        best = None if wanted == "last" else self.load_best()
        if best is not None:
            step, checkpoint, chosen = best[0].step, best[1], f"the best checkpoint: {best[0]}"
        elif wanted == "best":
            raise InputError(f"{self.path} has no best checkpoint: no validation images were given, take the last")
        else:
            last = self.load_checkpoint()
            if last is None:
                raise InputError(f"{self.path} has no checkpoint yet: train it first")
            step, checkpoint = int(last.progress["step"]), last
            chosen = f"the last checkpoint: step {step}"
        weights = {name[4:]: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("ema.")}
        return weights, step, chosen

    def seen(self, info: RunInfo, wanted: str | None = None) -> SeenImages:
        """The images that a checkpoint was trained on, and those that chose it.

        Args:
            info: What :meth:`info` has read.
            wanted: As for :meth:`averaged`.
        """
        chosen = bool(info.config.patience) or (wanted != "last" and self.best_file.exists())
        return (info.seen if chosen else SeenImages(info.seen.trained)).also(info.base_seen)

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to the log and flushes it."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()

    def measurements(self) -> list[dict[str, Any]]:
        """The lines of the log with a validation loss, and perhaps a validation accuracy, in the order of steps."""
        if not self.log_file.exists():
            return []
        lines = [json.loads(line) for line in self.log_file.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if "val_loss" in line]

    def forget_choices(self, step: int) -> None:
        """Drops what was measured on validation images that do not choose, and what was chosen by it.

        Losses on all of them stay in the log, but for those of a step, which is to be measured once more.
        """
        kept = []
        for line in self.log_file.read_text(encoding="utf-8").splitlines() if self.log_file.exists() else ():
            record = json.loads(line)
            if "val_loss" in record and record["step"] == step:
                continue
            kept.append({name: value for name, value in record.items() if name not in _CHOOSING})
        write_whole(self.log_file, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self.best_file.unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Drops what was written after the checkpoint of a step: lines of the log, and a best checkpoint.

        They are written again as the run goes on.
        """
        best = self.load_best()
        if best is not None and best[0].step > step:
            self.best_file.unlink()
        if not self.log_file.exists():
            return
        kept = []
        for line in self.log_file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # a line cut short by a kill
                continue
        write_whole(self.log_file, "".join(kept).encode())


def _write(path: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save

    write_whole(path, save(checkpoint.tensors, metadata={"progress": json.dumps(checkpoint.progress)}))


def _read(path: Path) -> Checkpoint | None:
    """A checkpoint with tensors on the CPU; None if there is no file.

    Raises:
        InputError: The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            progress = strict_json((file.metadata() or {})["progress"].encode(), path)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    return Checkpoint(tensors, progress)
