"""Small worlds that several test files share: a Gaussian classifier, networks that record, and a valid manifest.

Everything is quick and exact; nothing here needs an optional package.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc import BundleError, DiffusionClassifier, Model
from fastdc.backends import FunctionNetwork, NetworkOptions
from fastdc.backends.function import NetworkFunction
from fastdc.backends.protocol import AbstractSlot
from fastdc.bundle.folder import Bundle, write_bundle
from fastdc.bundle.format import DENOISER
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.rules.calibration import Calibration
from fastdc.testing.gaussian_world import GaussianWorld

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

SHAPE = (1, 4, 4)

CALIBRATION = Calibration(
    limit=1.5, delta=0.01, risk=0.002, draws=128, images=200, seeds=4, bound=7.5, plan={"levels": [0.1, 1.0]}
)
CURVE = LevelWeights(ratio=(0.1, 1.0), weight=(0.5, 1.5))


def gaussian(classes: int = 3, **options: Any) -> GaussianWorld:
    return GaussianWorld.random(classes, SHAPE, **options)


def unit_images(n: int, shape: tuple[int, int, int] = SHAPE, *, seed: int = 0) -> Float32:
    """Float images (n, c, h, w) in [0, 1]."""
    return np.random.default_rng(seed).random((n, *shape), dtype=np.float32)


class ManySlots(FunctionNetwork):
    """A function network with several slots, driven by as many threads.

    Attributes:
        recorded: The size of every step.
        threads: Which threads have run one.
        working: Which threads run one now.
    """

    def __init__(
        self,
        function: NetworkFunction,
        image_shape: tuple[int, int, int] = SHAPE,
        *,
        batch: int = 128,
        slots: int = 1,
    ) -> None:
        self.recorded: list[int] = []
        self.threads: set[int] = set()
        self.working: set[int] = set()

        def counted(sample: Float32, timestep: Float32, labels: Int64) -> npt.NDArray[Any]:
            self.recorded.append(len(sample))
            self.threads.add(threading.get_ident())
            self.working.add(threading.get_ident())
            try:
                return function(sample, timestep, labels)
            finally:
                self.working.discard(threading.get_ident())

        super().__init__(counted, image_shape, NetworkOptions(batch=batch))
        self.slots: tuple[AbstractSlot, ...] = tuple(
            FunctionNetwork(counted, image_shape, NetworkOptions(batch=batch)).slots[0] for _ in range(slots)
        )


def denoiser(world: GaussianWorld) -> NetworkFunction:
    """The world's optimal denoiser, as a function that a network can be made of."""

    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        sigma = np.exp(timestep.astype(np.float64) / world.schedule.timestep_scale)
        return world.denoise(sample.astype(np.float64), sigma, labels)

    return function


def classifier(world: GaussianWorld, *, batch: int = 128, slots: int = 1) -> DiffusionClassifier:
    return DiffusionClassifier(
        world.model, ManySlots(denoiser(world), world.model.image_shape, batch=batch, slots=slots)
    )


def refusing(model: Model) -> DiffusionClassifier:
    """A classifier whose network must not be asked: for inputs that are to be refused before any work."""

    def function(sample: Float32, _: Float32, __: Int64) -> Float32:
        raise AssertionError(f"the network was asked for {len(sample)} cells")

    return DiffusionClassifier(model, ManySlots(function, model.image_shape))


def manifest() -> dict[str, Any]:
    """A valid manifest for write_bundle."""
    return {
        "name": "tiny",
        "description": "two classes of 2x3 images",
        "image": {"shape": [1, 2, 3], "range": [-1.0, 1.0]},
        "classes": ["a", "b"],
        "null_class": 2,
        "schedule": {"kind": "edm", "sigma_min": 0.01, "sigma_max": 10.0, "timestep_scale": 0.25},
        "parameterization": {"kind": "edm", "sigma_data": 0.5},
        "defaults": {"draws": 4, "levels": [0.1, 1.0], "weighting": "edm", "loss": "l2", "temperature": 0.5},
        "network": None,
        "provenance": {"seed": 1},
    }


def tiny_bundle(path: Path, content: bytes = b"network", **changes: Any) -> Bundle:
    return write_bundle(path, {**manifest(), **changes}, {DENOISER: content})


def assert_one_line(error: Exception, *parts: str) -> None:
    """The message is one printable line of sane length that names all of `parts`."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 1000, text
    for part in parts:
        assert part in text, text


def fails_with(call: Callable[[], Any], *parts: str, kind: type[Exception] = BundleError) -> None:
    """`call` raises exactly `kind`, in one line that names all of `parts`."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    assert_one_line(caught.value, *parts)


def permutations(n: int, *, seed: int = 0, count: int = 2) -> Sequence[Int64]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(n) for _ in range(count)]
