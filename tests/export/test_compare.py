"""Comparisons of a bundle with torch: the same cells through both, and planted differences are found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

import torch

from fastdc.export.compare import TIE, Comparison, compare_errors, torch_classifier
from fastdc.sources import Source
from fastdc.support import InputError
from fastdc.testing import reference
from helpers.exported import exported, random_images, small_source


def _scaled(source: Source, factor: float) -> Source:
    """The source with a network that returns `factor` times as much."""

    class Scaled(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = factor * source.denoiser(*inputs)
            return out

    return replace(source, denoiser=Scaled())


def _labelled_differently(source: Source, change: Callable[[torch.Tensor], torch.Tensor]) -> Source:
    """The source with a network that reads changed class labels."""

    class Other(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = source.denoiser(sample, timestep, change(class_labels))
            return out

    return replace(source, denoiser=Other())


def test_a_source_equals_its_bundle_and_not_another(shared: Path) -> None:
    source, bundle = exported("module", shared)
    images = random_images(source, 6)
    found = compare_errors(source, bundle, images, draws=3)
    assert (found.images, found.cells, found.same) == (6, 6 * 3 * 3, 6)
    assert found.relative < 1e-4
    near = compare_errors(_scaled(source, 1.001), bundle, images, draws=3)
    assert 1e-5 < near.relative < 1e-2
    other = compare_errors(_labelled_differently(source, lambda labels: (labels + 1) % 3), bundle, images, draws=3)
    assert other.relative > 1e-3
    assert (other.same, other.ties, other.differing) == (0, 0, 6)


def test_the_difference_is_the_largest_of_a_cell(shared: Path) -> None:
    source, bundle = exported("module", shared)
    images, factor = random_images(source, 2), 1.01
    changed = _scaled(source, factor)
    cells = [torch_classifier(one).errors(images, draws=4, seed=3).errors for one in (changed, source)]
    want = np.abs(cells[1] - cells[0]) / cells[0]
    assert compare_errors(changed, bundle, images, seed=3).relative == pytest.approx(want.max(), rel=1e-3)


def test_a_source_in_torch_has_the_errors_of_the_definition() -> None:
    """lambda(sigma) mean |D(x + sigma e) - x|^2 with D of Karras et al. (arXiv:2206.00364, eq. 7) in float64."""
    source = small_source()
    images = random_images(source, 2)
    table = torch_classifier(source, batch=5).errors(images, draws=3, seed=7, streams=[11, 12])
    assert source.model.defaults.weighting == "edm"
    x = 2 * images.astype(np.float64) - 1
    network = small_source().denoiser.double()
    assert table.errors.shape == (2, 3, 3)
    for (i, k, draw), error in np.ndenumerate(table.errors):
        sigma, data = table.sigma[draw], 0.5
        both = sigma**2 + data**2
        noise = reference.normal(7, (11, 12)[i], draw, x[i].size).reshape(x[i].shape)
        noisy = x[i] + sigma * noise
        given = (torch.from_numpy(noisy / both**0.5)[None], torch.tensor([np.log(sigma) / 4]), torch.tensor([k]))
        denoised = data**2 / both * noisy + sigma * data / both**0.5 * network(*given).numpy()[0]
        want = both / (sigma * data) ** 2 * ((denoised - x[i]) ** 2).mean()
        assert error == pytest.approx(want, rel=1e-4)


def test_a_tie_is_no_difference(shared: Path) -> None:
    """A network that ignores the class: every image is a tie."""
    source, bundle = exported("module", shared)
    blind = _labelled_differently(source, torch.zeros_like)
    found = compare_errors(blind, bundle, random_images(source, 5))
    assert found.ties == 5
    assert found.differing == 0
    assert TIE < 1e-4


def test_without_images_random_ones_are_used(shared: Path) -> None:
    source, bundle = exported("module", shared)
    found = compare_errors(source, bundle)
    assert (found.images, found.cells) == (4, 4 * 3 * 4)
    with pytest.raises(InputError, match="images"):
        compare_errors(source, bundle, np.zeros((2, 2, 5, 5), np.float32))


def test_the_line_for_people() -> None:
    line = "errors within 1.2e-06 of torch's on 1,200 cells, 9 of 10 images have the same class, 1 ties"
    assert str(Comparison(10, 1200, 1.234e-6, 9, 1, 0)) == line
    assert str(Comparison(10, 1200, 1.234e-6, 9, 0, 1)) == line.removesuffix(", 1 ties")
