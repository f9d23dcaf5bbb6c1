"""The public object: a diffusion classifier that is loaded once and asked many times.

    clf = fastdc.load("digits")
    clf(images).labels                     # pictures, paths, arrays, tensors, or an iterable of them

The method is the Diffusion Classifier (Li et al., arXiv 2303.16203, algorithm 1): how well does the conditional model
denoise the image under each class? All classes see the same noise, and a rule says when a class has lost.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Unpack

from fastdc.backends import AbstractEncoder, AbstractNetwork, check_pickles, chosen_by, copied
from fastdc.bundle import Model
from fastdc.calibration import calibrate_errors, check_level
from fastdc.certification import (
    SELECTION_COPIES,
    AbstractBase,
    AbstractEstimation,
    Certificates,
    CertificateStream,
    DiffusionBase,
    OnCertifyProgress,
    Smoothing,
    certify_prepared,
    check_base,
    estimation_of,
)
from fastdc.engine import check_replicas, device_name
from fastdc.explanation import Counterfactuals, Explanation, counterfactuals, explain
from fastdc.inference import (
    CALIBRATION_DRAWS,
    Candidates,
    Classification,
    ErrorTable,
    Images,
    Job,
    OnProgress,
    Options,
    RunOptions,
    Settings,
    TableOptions,
    ValidationRuns,
    check_candidates,
    images_with_labels,
    merged,
    stream_results,
)
from fastdc.rules import Calibration
from fastdc.support import Float32, Float64, InputError, Int64, checks


@dataclass(frozen=True, repr=False)
class DiffusionClassifier:
    """A model and the network that runs it. :func:`fastdc.load` makes one; so can you, for a network given from Python.

    Methods take images of any kind: :func:`fastdc.data.prepare` lists them. Pictures and files are resized to the
    model's shape; arrays in memory only get their axes in order.

    Several methods take the options of a run, as a :class:`fastdc.Options` object, which explains them, or as keywords.

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
        network, choice = self.network, chosen_by(self.network)
        where = f"{network.backend} on {device_name(self.networks)} in {network.precision}, batch {network.batch}"
        return f"DiffusionClassifier({self.model!r}, {where}{'' if choice is None else f', chosen by {choice.origin}'})"

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
        **plan: Unpack[TableOptions],
    ) -> ErrorTable:
        """The error of every image, class and draw.

        Args:
            images: Images of any kind, see :func:`fastdc.data.prepare`.
            seed: Seed of the noise, in [0, 2^64).
            streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels.
            progress: Called after every step.
            **plan: Options of the draws and of the images, see :class:`fastdc.Options`.

        Example:
            >>> clf.errors(images, draws=4).errors.shape
            (20, 10, 4)

        Raises:
            InputError: Images or options cannot be used; raised before any work starts.
        """
        wanted = merged(Options(rule="full", seed=seed), plan)
        job = self._job(wanted)
        ready = Images.of(images, self.model, streams, **wanted.reading)
        return job.table(ready.samples, ready.streams, progress)

    def validation_runs(self, images: Any, **plan: Unpack[TableOptions]) -> ValidationRuns:
        """Full runs over the same images under different noise, prepared once: the material of calibrations.

        Args:
            images: Images of any kind, without noise. With the option sigma, run k sees noisy copy k of each image.
            **plan: Options of the draws and of the images, see :class:`fastdc.Options`.

        Example:
            >>> [table.mean().shape for table in clf.validation_runs(images, draws=2).tables(seeds=3)]
            [(20, 10), (20, 10), (20, 10)]

        Raises:
            InputError: Images or options cannot be used.
        """
        wanted = merged(Options(rule="full"), plan)
        return ValidationRuns(self._job(wanted), Images.of(images, self.model, **wanted.reading))

    def classify(
        self,
        images: Any,
        options: Options | None = None,
        *,
        candidates: Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **keywords: Unpack[RunOptions],
    ) -> Classification:
        """Classifies images.

        Args:
            images: Images of any kind, see :func:`fastdc.data.prepare`.
            options: Options of the run.
            candidates: Classes to consider: a list of names or indices for all images, such as ["cat", "dog"], such a
                list for each image, a mask (n, K), or a prefilter, which gets the images as float32 in [0, 1] and
                returns one of these. The rule's guarantee is then about the best candidate.
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

    def __call__(self, images: Any, options: Options | None = None, **keywords: Any) -> Classification:
        """Classifies images: :meth:`classify`."""
        return self.classify(images, options, **keywords)

    def predict(self, images: Any, options: Options | None = None, **keywords: Any) -> Int64:
        """The class of each image, int64 (n,); arguments are those of :meth:`classify`.

        Example:
            >>> bool((clf.predict(images) == labels).all())
            True
        """
        return self.classify(images, options, **keywords).labels

    def predict_proba(self, images: Any, options: Options | None = None, **keywords: Any) -> Float64:
        """The probability of each class, float64 (n, K); arguments are those of :meth:`classify`.

        Example:
            >>> clf.predict_proba(images).shape
            (20, 10)
        """
        return self.classify(images, options, **keywords).probabilities

    def score(
        self,
        images: Any,
        labels: Any = None,
        options: Options | None = None,
        *,
        candidates: Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **keywords: Unpack[RunOptions],
    ) -> float:
        """The accuracy: the share of images whose class is found.

        `labels` are the true classes, n indices or names; None: those of `images`, a folder with one sub-folder per
        class, or an .npz file with labels. The other arguments are those of :meth:`classify`.

        Example:
            >>> clf.score(images, labels)
            1.0

        Raises:
            InputError: Labels, images or options cannot be used; raised before any work starts.
        """
        wanted = merged(options, keywords, self.score)
        ready, truth = images_with_labels(images, labels, self.model, streams, **wanted.reading)
        found = self.classify(ready, wanted, candidates=candidates, progress=progress)
        return float((found.labels == truth).mean())

    def stream(
        self,
        images: Any,
        options: Options | None = None,
        *,
        chunk: int | None = 64,
        candidates: Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **keywords: Unpack[RunOptions],
    ) -> Iterator[Classification]:
        """Classifies images in one run, and yields results of consecutive images as soon as they are known.

        Numbers and arguments are those of :meth:`classify`. They are checked when the first result is asked for.

        Args:
            images: Images of any kind, see :func:`fastdc.data.prepare`.
            options: Options of the run.
            chunk: Images per result; None: all in one.
            candidates: Classes to consider, see :meth:`classify`.
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
        wanted = merged(options, keywords, self.stream)
        settings = self.settings(wanted)
        ready = Images.of(images, self.model, streams, **wanted.reading)
        chosen = None if candidates is None else check_candidates(candidates, ready, self.model)
        yield from stream_results(settings, ready, chunk=chunk, candidates=chosen, progress=progress, start=start)

    def calibrate(
        self,
        images: Any,
        *,
        delta: float = 0.01,
        seeds: int = 8,
        progress: OnProgress | None = None,
        **plan: Unpack[TableOptions],
    ) -> Calibration:
        """Calibrates the race on validation images: see :mod:`fastdc.calibration.race` for what is promised.

        Args:
            images: Images of any kind: like those to be classified, and neither trained on nor used for results. Labels
                are not needed. With the option sigma, noise is added to them.
            delta: Probability with which the race may lose the class of the full run, at least 1 / (n + 1).
            seeds: Number of noise seeds per image.
            progress: Called after every step.
            **plan: Options of the draws and of the images, see :class:`fastdc.Options`; the calibration holds for
                these levels and weights. draws are those of the full run, 128 unless given.

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

    def explain(self, images: Any, **options: Any) -> Explanation:
        """Where each image's class denoises better than another one: see :func:`fastdc.explanation.explain`.

        Example:
            >>> clf.explain(images[:1], against="1", map_draws=8).maps.shape
            (1, 8, 8)
        """
        return explain(self, images, **options)

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
        usual = "epndc" if self.model.latent_shape is None else "dc"
        wanted = merged(options, keywords)
        return DiffusionBase(self._job(wanted.but(method=wanted.method or usual)))

    def certify_stream(
        self,
        images: Any,
        sigma: float | AbstractEstimation | None = None,
        *,
        n0: int = SELECTION_COPIES,
        n: int | None = None,
        alpha: float | None = None,
        radius: float | None = None,
        estimation: str | AbstractEstimation = "fixed",
        tolerance: float | None = None,
        seed: int = 0,
        base: AbstractBase | None = None,
        streams: Any = None,
        progress: OnCertifyProgress | None = None,
        **options: Any,
    ) -> CertificateStream:
        """Certifies images by randomized smoothing; yields (index, certificate) in order, as soon as they are known.

        Args:
            images: Images of any kind, see :func:`fastdc.data.prepare`.
            sigma: Standard deviation of the noise, in pixels in [0, 1]; or a whole estimation, which has sigma, n and
                alpha, such as ``certification.Fixed(0.25, n=1000)``, or ``Predict``, for a class without a radius.
            n0: Copies per image that select its class.
            n: Largest number of copies that bound its probability; default: 1000, with `radius` 10,000.
            alpha: Probability of a false certificate; default: 0.001.
            radius: Radius in pixels in [0, 1] to certify or refuse, which takes fewer copies.
            estimation: "fixed", "pilot" or "anytime".
            tolerance: Radius that "pilot" and "anytime" may lose; default: 0.05.
            seed: Seed of the copies' noise, and of the base classifier's.
            base: The base classifier; default: :meth:`base` with sigma, seed and `options`.
            streams: Noise stream of each image, whole numbers in [0, 2^56); default: from the image's pixels.
            progress: Called whenever copies were classified.
            **options: Options of the base classifier and of the images, see :class:`fastdc.Options`.

        Example:
            >>> [index for index, _ in clf.certify_stream(images[:2], 0.25, n0=8, n=20, alpha=0.01)]
            [0, 1]

        Raises:
            InputError: Images or options cannot be used; raised before any work starts.
        """
        how = estimation_of(sigma, n=n, alpha=alpha, radius=radius, estimation=estimation, tolerance=tolerance)
        smoothing = Smoothing(how, n0=n0, seed=seed)
        wanted = merged(None, options, self.certify_stream)
        chosen = self.base(wanted, sigma=how.sigma, seed=smoothing.seed) if base is None else check_base(base, options)
        return certify_prepared(chosen, Images.of(images, self.model, streams, **wanted.reading), smoothing, progress)

    def certify(self, images: Any, sigma: float | AbstractEstimation | None = None, **options: Any) -> Certificates:
        """Certificates of all images, a sequence in order; arguments are those of :meth:`certify_stream`.

        Example:
            >>> bool(clf.certify(images[:1], sigma=0.25, n0=8, n=100, alpha=0.01)[0].label == labels[0])
            True
        """
        return Certificates.of(self.certify_stream(images, sigma, **options), self.class_names)

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

    def counterfactuals(self, images: Any, to: Any = None, **options: Any) -> Counterfactuals:
        """What images would look like as another class: see :func:`fastdc.explanation.counterfactuals`.

        Example:
            >>> clf.counterfactuals(images[:1], to="9", steps=5).counterfactual.shape
            (1, 1, 8, 8)
        """
        return counterfactuals(self, images, to=to, **options)

    def settings(self, options: Options | None = None, **keywords: Unpack[RunOptions]) -> Settings:
        """The options of :meth:`classify`, checked and complete, for programs that run images in their own way.

        Example:
            >>> clf.settings(rule="full").job.rule.name
            'full'

        Raises:
            InputError: An option cannot be used.
        """
        return Settings.of(self.model, self.networks, merged(options, keywords), self.encoder)

    def _job(self, options: Options) -> Job:
        return Job.of(self.model, self.networks, options, self.encoder)
