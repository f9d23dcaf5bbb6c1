"""Compares the classifications of a bundle and of its torch model on the same images, classes, levels and noise."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdc.backends import ModuleEncoder, NetworkOptions, TorchNetwork
from fastdc.bundle import Bundle
from fastdc.classifier import DiffusionClassifier
from fastdc.loading import load
from fastdc.sources import Source, WithTables

TIE = 1e-5
"""Relative difference of two mean errors below which rounding decides between the classes: a tie."""


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        images: Number of images.
        cells: Number of errors that were compared.
        relative: Largest difference of a cell's error, relative to the torch model's error.
        same: Number of images with the same class.
        ties: Number of images whose two best classes are so close that rounding decides between them.
        differing: Number of images with another class, ties aside.
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
    """The classifier of a source in torch, without an export.

    Args:
        source: The model.
        batch: Largest number of evaluations per step.

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
        bundle: The model's bundle, or its folder.
        images: Images (n, c, h, w), uint8 or float in [0, 1]; default: four images of random pixels.
        draws: Number of draws per class, with levels spread over the schedule.
        seed: Seed of the noise.

    Raises:
        InputError: The images do not fit.
        BackendError: The bundle or the module cannot be run.

    Example:
        >>> from fastdc import bundle, export, sources
        >>> module = fastdc.load("digits-mlp", backend="torch").network.module
        >>> source = sources.Source("module", clf.model, module)
        >>> export.compare_errors(source, bundle.find_model("digits-mlp"), images[:4]).differing
        0
    """
    opened = load(bundle, backend="onnx", device="cpu")
    if images is None:
        images = np.random.default_rng(seed).random((4, *source.model.image_shape), dtype=np.float32)
    # The bundle may have other defaults than the source, and its defaults select the levels.
    source = replace(source, model=replace(source.model, defaults=opened.model.defaults))
    both = (torch_classifier(source, batch=opened.network.batch), opened)
    want, got = (clf.errors(images, layout="NCHW", draws=draws, seed=seed).errors.astype(np.float64) for clf in both)
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
