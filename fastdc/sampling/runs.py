"""Runs of samplers: images go through in chunks that fill the network's steps, in one turn of the network.

Noise depends on an image's stream and the step alone, so chunks change no number.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from fastdc.backends import AbstractEncoder, AbstractNetwork
from fastdc.bundle import Model
from fastdc.engine import Turn
from fastdc.inference import OnProgress, Progress
from fastdc.sampling.guided import GuidedDenoiser
from fastdc.sampling.trajectory import Trajectory
from fastdc.support import Interrupted

T = TypeVar("T")


class ModelAndNetwork(Protocol):
    """What a sampler needs of a classifier."""

    @property
    def model(self) -> Model:
        """The model."""

    @property
    def network(self) -> AbstractNetwork:
        """Its network on the first device."""

    @property
    def encoder(self) -> AbstractEncoder | None:
        """Makes latents of images, for a model that works on latents."""


class SamplingRun:
    """A run over n images on one network.

    Args:
        classifier: Model and network.
        trajectory: Levels at which the network will be asked.
        images: Number of images, n.
        evaluations: Network evaluations that an image takes.
        cells: Network evaluations of an image in one call.
        clip: Whether estimates are clipped to the model's range of pixel values.
        coefficients: Whether wavelet coefficients are clipped to that range, and not the pixels they make.
        progress: Called after every call of the network.

    Attributes:
        denoise: The network's estimates of clean images.
    """

    def __init__(
        self,
        classifier: ModelAndNetwork,
        trajectory: Trajectory,
        *,
        images: int,
        evaluations: int,
        cells: int,
        clip: bool,
        coefficients: bool = False,
        progress: OnProgress | None = None,
    ) -> None:
        self._network, self._n = classifier.network, images
        self._all, self._progress = images * evaluations, progress
        self._done = 0
        options: dict[str, Any] = {"clip": clip, "coefficients": coefficients, "told": self._tell}
        self.denoise = GuidedDenoiser(classifier.network, classifier.model, trajectory.levels, **options)
        self._size = max(1, self.denoise.room // cells)

    def __call__(self, work: Callable[[slice], T], together: Callable[[list[T]], Any]) -> Any:
        """The results of all images, when it is the network's turn.

        Args:
            work: Makes the results of a chunk of images.
            together: Makes one result of those of the first chunks, or of all.

        Raises:
            Interrupted: Ctrl-C; its ``result`` is of the images that were finished.
        """
        parts: list[T] = []

        def chunks() -> None:
            for at in range(0, self._n, self._size):
                parts.append(work(slice(at, min(self._n, at + self._size))))
                self._done = min(self._n, at + self._size)

        try:
            Turn((self._network,)).call(chunks)
        except KeyboardInterrupt:
            known = together(parts) if parts else None
            raise Interrupted(f"interrupted: {self._done} of {self._n} images finished", known) from None
        self._tell()
        return together(parts)

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(Progress(self._done, self._n, self.denoise.evaluations, self._all))
