"""Whether a bundle classifies as its torch model does: the same images, classes, levels and noise through both."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdc.backends import ModuleEncoder, NetworkOptions, TorchNetwork
from fastdc.bundle import Bundle
from fastdc.classifier import DiffusionClassifier
from fastdc.loading import load
from fastdc.sources import Source, WithTables

# Classes whose mean errors are closer than this, relative to the error, are a tie: rounding decides between them.
TIE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        images: How many.
        cells: Errors compared.
        relative: Largest difference of a cell's error, relative to the torch model's.
        same: Images with the same class.
        ties: Images whose two best classes are too close for rounding not to matter.
        differing: Images, ties aside, with another class.
    """

    images: int
    cells: int
    relative: float
    same: int
    ties: int
    differing: int

    def __str__(self) -> str:
        """One line for people."""
        same = f"{self.same} of {self.images} images have the same class"
        ties = f", {self.ties} ties" if self.ties else ""
        return f"errors within {self.relative:.2g} of torch's on {self.cells:,} cells, {same}{ties}"


def torch_classifier(source: Source, *, batch: int | None = None) -> DiffusionClassifier:
    """The classifier of a source in torch, without any export.

    Args:
        source: The model.
        batch: Largest number of evaluations in a step.

    Example:
        >>> from fastdc.export import torch_classifier
        >>> from fastdc.sources import open_source
        >>> from fastdc.testing import write_edm
        >>> torch_classifier(open_source(write_edm(folder / "net.pkl", "adm"))).model.name
        'net'
    """
    module = WithTables(source.denoiser, source.tables)
    network = TorchNetwork(module, source.model.sample_shape, NetworkOptions(device="cpu", batch=batch))
    encoder = None if source.encoder is None else ModuleEncoder(source.encoder)
    return DiffusionClassifier(source.model, network, encoder)


def compare_errors(
    source: Source,
    bundle: Bundle | str | Path,
    images: npt.NDArray[np.uint8] | npt.NDArray[np.floating] | None = None,
    *,
    draws: int = 4,
    seed: int = 0,
) -> Comparison:
    """Runs every class of a few images at a few levels through a bundle and through torch.

    Args:
        source: The model.
        bundle: Its bundle.
        images: (n, c, h, w), uint8 or float in [0, 1]; default: four of random pixels.
        draws: Levels, spread over the schedule.
        seed: Of the noise.

    Raises:
        InputError: The images do not fit.
        BackendError: One of them cannot be run.
    """
    opened = load(bundle, backend="onnx", device="cpu")
    if images is None:
        images = np.random.default_rng(seed).random((4, *source.model.image_shape), dtype=np.float32)
    # The bundle's defaults may be others than the source's, and with them the levels.
    source = replace(source, model=replace(source.model, defaults=opened.model.defaults))
    both = (torch_classifier(source, batch=opened.network.batch), opened)
    want, got = (clf.errors(images, draws=draws, seed=seed).errors.astype(np.float64) for clf in both)
    relative = float((np.abs(got - want) / np.abs(want)).max())
    ours, theirs = got.mean(axis=2), want.mean(axis=2)
    same = ours.argmin(axis=1) == theirs.argmin(axis=1)
    tied = np.zeros(len(images), np.bool_)
    if theirs.shape[1] > 1:
        best = np.sort(theirs, axis=1)
        tied = best[:, 1] - best[:, 0] < TIE * best[:, 0]
    return Comparison(
        len(images), want.size, relative, int(same.sum()), int(tied.sum()), int(np.count_nonzero(~same & ~tied))
    )
