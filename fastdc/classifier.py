"""The public object: a diffusion classifier that is loaded once and asked many times.

    clf = fastdc.load("digits")
    result = clf.classify(images)          # uint8 or float in [0, 1], (n, c, h, w)
    result.labels, result.probabilities, result.evaluations

The method is the Diffusion Classifier (Li et al., arXiv 2303.16203, algorithm 1): how well does the conditional model
denoise the image under each class? All classes see the same noise, and a rule says when a class has lost.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

from fastdc.backends import AbstractEncoder, AbstractNetwork, check_pickles, copied
from fastdc.bundle import Model, PixelRange
from fastdc.calibration import calibrate_errors, check_level
from fastdc.certification import (
    AbstractBase,
    AbstractEstimation,
    Certificates,
    CertificateStream,
    DiffusionBase,
    OnCertifyProgress,
    Smoothing,
    certify_images,
)
from fastdc.engine import check_replicas, device_name
from fastdc.inference import (
    CALIBRATION_DRAWS,
    Candidates,
    Classification,
    ErrorTable,
    Images,
    Job,
    OnProgress,
    Options,
    PlanOptions,
    RunOptions,
    Settings,
    ValidationRuns,
    check_candidates,
    merged,
    prepare,
    stream_results,
)
from fastdc.rules import Calibration
from fastdc.support import Float32, InputError, Mask, checks


@dataclass(frozen=True, repr=False)
class DiffusionClassifier:
    """A model and the network that runs it. :func:`fastdc.load` makes one; so can you, for a network given from Python.

    Several methods take the options of a run, as a :class:`fastdc.Options` object, as keywords, or both. Its docstring
    explains each option once for all of them.

    Attributes:
        model: Shapes, classes, schedule, parameterisation, defaults.
        network: Network that computes F(sample, timestep, class_labels).
        encoder: Encoder that makes latents of images, for a model that works on latents.
        replicas: The same network on further devices; images are shared out among all of them.
    """

    model: Model
    network: AbstractNetwork
    encoder: AbstractEncoder | None = None
    replicas: tuple[AbstractNetwork, ...] = ()

    def __post_init__(self) -> None:
        if self.model.latent_shape is not None and self.encoder is None:
            raise InputError(f"model {self.model.name} works on latents: expected the encoder that makes them")
        check_replicas(self.networks)

    def __repr__(self) -> str:
        network = self.network
        where = f"{network.backend} on {device_name(self.networks)} in {network.precision}, batch {network.batch}"
        return f"DiffusionClassifier({self.model!r}, {where})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As its parts: networks of a bundle are opened again, from the same bundle and options."""
        check_pickles((*self.networks, self.encoder))
        return super().__reduce_ex__(protocol)

    def __copy__(self) -> "DiffusionClassifier":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusionClassifier":
        network, *others = (copied(one, memo) for one in self.networks)
        return replace(self, network=network, encoder=copied(self.encoder, memo), replicas=tuple(others))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K class names."""
        return self.model.class_names

    @property
    def networks(self) -> tuple[AbstractNetwork, ...]:
        """The network on every device, one or more."""
        return (self.network, *self.replicas)

    def errors(
        self,
        images: Any,
        *,
        seed: int = 0,
        streams: Any = None,
        progress: OnProgress | None = None,
        **plan: Unpack[PlanOptions],
    ) -> ErrorTable:
        """The error of every image, class and draw.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            seed: Seed of the noise, in [0, 2^64).
            streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels, so that
                order and batch change nothing.
            progress: Called after every step.
            **plan: Options that select the draws, see :class:`fastdc.Options`.

        Example:
            >>> clf.errors(images, draws=4).errors.shape
            (20, 10, 4)

        Raises:
            InputError: Images or options cannot be used; raised before any work starts.
        """
        job = self._full_run(seed, plan)
        ready = prepare(images, self.model, streams)
        return job.table(ready.x, ready.streams, progress)

    def validation_runs(self, images: Any, **plan: Unpack[PlanOptions]) -> ValidationRuns:
        """Full runs over the same images under different noise, prepared once: the material of calibrations.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1], without noise. With the option sigma, run k sees noisy copy
                k of each image, as randomized smoothing makes them.
            **plan: Options that select the draws, see :class:`fastdc.Options`.

        Example:
            >>> [table.mean().shape for table in clf.validation_runs(images, draws=2).tables(seeds=3)]
            [(20, 10), (20, 10), (20, 10)]

        Raises:
            InputError: Images or options cannot be used.
        """
        return ValidationRuns(self._full_run(0, plan), prepare(images, self.model))

    def classify(
        self,
        images: Any,
        options: Options | None = None,
        *,
        candidates: Sequence[Sequence[int]] | Mask | Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **keywords: Unpack[RunOptions],
    ) -> Classification:
        """Classifies images.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            options: Options of the run.
            candidates: Classes to consider for each image: a mask (n, K), lists of class indices, or a prefilter. A
                prefilter is called with the images as float32 in [0, 1] and returns a mask or lists. The rule's
                guarantee is then about the best candidate: a class that the prefilter leaves out can never be the
                answer.
            streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels.
            progress: Called after every step.
            **keywords: Options by name, see :class:`fastdc.Options`; they win over `options`.

        Returns:
            Labels, probabilities and what they cost.

        Example:
            >>> bool((clf.classify(images).labels == labels).all())
            True

        Raises:
            InputError: Images or options cannot be used; raised before any work starts.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished.
        """
        results = self.stream(
            images, options, chunk=None, candidates=candidates, streams=streams, progress=progress, **keywords
        )
        return next(results)

    def stream(
        self,
        images: Any,
        options: Options | None = None,
        *,
        chunk: int | None = 64,
        candidates: Sequence[Sequence[int]] | Mask | Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **keywords: Unpack[RunOptions],
    ) -> Iterator[Classification]:
        """Classifies images in one run, and yields results of consecutive images as soon as they are known.

        The numbers are those of :meth:`classify`, whose arguments it shares. Arguments are checked when the first
        result is asked for.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            options: Options of the run.
            chunk: Images per result; None: all in one.
            candidates: Classes to consider for each image, see :meth:`classify`.
            streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels.
            progress: Called after every step.
            **keywords: Options by name, see :class:`fastdc.Options`; they win over `options`.

        Example:
            >>> [len(result.labels) for result in clf.stream(images, chunk=8)]
            [8, 8, 4]

        Raises:
            InputError: Images or options cannot be used.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished and not yielded yet.
        """
        start = time.perf_counter()
        if chunk is not None:
            checks.whole_or("chunk", chunk, 1)
        settings = self.settings(options, **keywords)
        ready = prepare(images, self.model, streams)
        chosen = None if candidates is None else check_candidates(candidates, ready.unit, self.model)
        yield from stream_results(settings, ready, chunk=chunk, candidates=chosen, progress=progress, start=start)

    def calibrate(
        self,
        images: Any,
        *,
        delta: float = 0.01,
        seeds: int = 8,
        progress: OnProgress | None = None,
        **plan: Unpack[PlanOptions],
    ) -> Calibration:
        """Calibrates the race on validation images: see :mod:`fastdc.calibration.race` for what is promised.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1]: like those to be classified, and neither trained on nor
                used for results. Labels are not needed. With the option sigma, noise is added to them.
            delta: Probability with which the race may lose the class of the full run, at least 1 / (n + 1).
            seeds: Number of noise seeds per image.
            progress: Called after every step.
            **plan: Options that select the draws, see :class:`fastdc.Options`; the calibration holds for these levels
                and weights. draws are those of the full run, 128 unless given.

        Returns:
            The calibration: classify with ``rule=calibration.rule``, or store it with the model.

        Example:
            >>> clf.calibrate(images, delta=0.05, seeds=1, draws=8).images
            20

        Raises:
            InputError: Images or options cannot be used, or there are too few images for delta.
        """
        checks.whole("seeds", seeds)
        plan.setdefault("draws", CALIBRATION_DRAWS)
        runs = self.validation_runs(images, **plan)
        check_level(delta, len(runs.images))  # before the work, not after it
        return calibrate_errors((table.errors for table in runs.tables(seeds, progress)), runs.config, delta=delta)

    def base(self, options: Options | None = None, **keywords: Unpack[RunOptions]) -> DiffusionBase:
        """The base classifier of randomized smoothing: this classifier on images with Gaussian noise.

        Args:
            options: Options of the run. sigma is needed; the default method is "epndc", or "dc" on latents. The seed
                is that of the noise that the method adds.
            **keywords: Options by name, see :class:`fastdc.Options`.

        Example:
            >>> clf.base(sigma=0.25).n_classes
            10

        Raises:
            InputError: An option cannot be used.
        """
        wanted = merged(options, keywords)
        if wanted.method is None:
            wanted = wanted.but(method="epndc" if self.model.latent_shape is None else "dc")
        return DiffusionBase(Job.of(self.model, self.networks, wanted, self.encoder))

    def certify_stream(
        self,
        images: Any,
        estimation: AbstractEstimation,
        *,
        n0: int = 100,
        seed: int = 0,
        base: AbstractBase | None = None,
        streams: Any = None,
        progress: OnCertifyProgress | None = None,
    ) -> CertificateStream:
        """Certifies images by randomized smoothing; yields (index, certificate) in order, as soon as they are known.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            estimation: How the radius is estimated: ``certification.Fixed``, ``Pilot``, ``Target``, ``Anytime``, or
                ``Predict`` for a class without a radius. It has sigma and alpha.
            n0: Selection copies per image.
            seed: Seed of the copies' noise.
            base: The base classifier; default: ``base(sigma=estimation.sigma, seed=seed)``.
            streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels.
            progress: Called whenever copies were classified.

        Example:
            >>> from fastdc.certification import Fixed
            >>> [index for index, _ in clf.certify_stream(images[:2], Fixed(0.25, most=20, alpha=0.01), n0=8)]
            [0, 1]

        Raises:
            InputError: Images or options cannot be used; raised before any work starts.
        """
        smoothing = Smoothing(estimation, n0=n0, seed=seed)
        chosen = self.base(sigma=smoothing.sigma, seed=seed) if base is None else base
        if isinstance(chosen, DiffusionBase):
            chosen.check_sigma(smoothing.sigma)
        ready = prepare(images, self.model, streams)
        return certify_images(chosen, self._seen_by(chosen, ready), ready.streams, smoothing, progress=progress)

    def certify(self, images: Any, estimation: AbstractEstimation, **options: Any) -> Certificates:
        """Certificates of all images, a sequence in order; arguments are those of :meth:`certify_stream`.

        Example:
            >>> from fastdc.certification import Fixed
            >>> bool(clf.certify(images[:1], Fixed(0.25, most=100, alpha=0.01), n0=8)[0].label == labels[0])
            True
        """
        return Certificates.of(self.certify_stream(images, estimation, **options), self.class_names)

    def as_module(self, **options: Any) -> Any:
        """The classifier as a differentiable ``torch.nn.Module``: see :func:`fastdc.robust.as_module`.

        Example:
            >>> fastdc.load("digits-mlp", backend="torch", device="cpu").as_module(draws=2).training
            False
        """
        from fastdc.robust import as_module

        return as_module(self, **options)

    def maximize_likelihood(self, images: Any, **options: Any) -> Float32:
        """Images moved towards higher likelihood: see :func:`fastdc.robust.maximize_likelihood`.

        Example:
            >>> fastdc.load("digits", backend="torch", device="cpu").maximize_likelihood(images[:1]).shape
            (1, 1, 8, 8)
        """
        from fastdc.robust import maximize_likelihood

        return maximize_likelihood(self, images, **options)

    def settings(self, options: Options | None = None, **keywords: Unpack[RunOptions]) -> Settings:
        """The options of :meth:`classify`, checked and complete, for programs that run images in their own way.

        Example:
            >>> clf.settings(rule="full").job.rule.name
            'full'

        Raises:
            InputError: An option cannot be used.
        """
        return Settings.of(self.model, self.networks, merged(options, keywords), self.encoder)

    def _full_run(self, seed: int, plan: PlanOptions) -> Job:
        return Job.of(self.model, self.networks, merged(Options(rule="full", seed=seed), plan), self.encoder)

    def _seen_by(self, base: AbstractBase, images: Images) -> Float32:
        """The images in the range that a base classifier takes."""
        return images.x if base.value_range == self.model.value_range else images.on(PixelRange(*base.value_range))
