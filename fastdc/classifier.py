"""The public object: a diffusion classifier that is loaded once and asked many times.

    clf = fastdc.load("digits")
    result = clf.classify(images)          # uint8 or float in [0, 1], (n, c, h, w)
    result.labels, result.probabilities, result.evaluations

The method is the Diffusion Classifier (Li et al., arXiv 2303.16203, algorithm 1): for every class, how well does the
conditional model denoise the image; all classes see the same noise. The rule says when a class has lost.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractEncoder, AbstractNetwork
from fastdc.bundle import Model
from fastdc.calibration import calibrate_errors, check_level
from fastdc.certification import (
    AbstractBase,
    AbstractEstimation,
    Certificate,
    DiffusionBase,
    OnCertifyProgress,
    Smoothing,
    certify_images,
    one_copy_each,
)
from fastdc.inference import (
    DECISIONS,
    Candidates,
    Classification,
    ErrorTable,
    Job,
    OnProgress,
    PlanOptions,
    Rows,
    Settings,
    check_candidates,
    check_streams,
    streams_of,
    to_model_range,
)
from fastdc.rules import AbstractRule, Calibration
from fastdc.support import InputError, Interrupted, checks

CALIBRATION_DRAWS = 128


@dataclass(frozen=True)
class DiffusionClassifier:
    """A model and a network that runs it. Made by :func:`load`, or by hand for a network given from Python.

    Plan options, which several methods take by keyword; what is not given is the model's default:

    * draws: draws a class, J.
    * levels: band of noise-to-signal ratios sigma / alpha (low, high), in units of the model's pixel values, or "all".
    * first: ratios of the first draws, before the band is gone through.
    * weighting: "uniform", "edm", "vlb", "exp" or "min_snr".
    * loss: "l2", "l1" or "huber".
    * order, order_seed, antithetic, level_weights: see ``plan.PlanConfig``.
    * method, sigma: for noisy images: a noised diffusion classifier (``noised``) and the standard deviation of their
      noise in pixels in [0, 1]. The default, "dc", takes images for clean ones.

    Attributes:
        model: Shapes, classes, schedule, parameterisation, defaults.
        network: What runs F(sample, timestep, class_labels).
        encoder: Makes latents of images, for a model that works on latents.
    """

    model: Model
    network: AbstractNetwork
    encoder: AbstractEncoder | None = None

    def __post_init__(self) -> None:
        if self.model.latent_shape is not None and self.encoder is None:
            raise InputError(f"model {self.model.name} works on latents: expected the encoder that makes them")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K class names."""
        return self.model.class_names

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
            seed: Of the noise, in [0, 2^64).
            streams: Noise stream of each image, ints in [0, 2^56); default: from the image's pixels, so that order and
                batch change nothing.
            progress: Called after every step.
            **plan: Plan options, see the class.

        Raises:
            InputError: Images or options cannot be used; before any work starts.
        """
        job = self._job("full", None, seed, plan)
        x = to_model_range(images, self.model)
        noise_streams = streams_of(x) if streams is None else check_streams(streams, len(x))
        return _table(job, x, noise_streams, progress)

    def errors_of_copies(
        self,
        images: Any,
        *,
        number: int = 0,
        seed: int = 0,
        progress: OnProgress | None = None,
        **plan: Unpack[PlanOptions],
    ) -> ErrorTable:
        """Every error of a noisy copy of each image, x + sigma e, as randomized smoothing makes them (``copies``).

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1]: without noise.
            number: Which copy, from 0.
            seed: Of the copies' noise and of the noise that the method adds.
            progress: Called after every step.
            **plan: Plan options, see the class; sigma is needed.

        Raises:
            InputError: Images or options cannot be used.
        """
        job = self._job("full", None, seed, plan)
        x = to_model_range(images, self.model)
        copies, noise = one_copy_each(x, streams_of(x), number, std=job.plan.config.noise, seed=seed)
        return _table(job, copies, noise, progress)

    def classify(
        self,
        images: Any,
        *,
        rule: str | AbstractRule = "race",
        rule_options: dict[str, Any] | None = None,
        decision: str = "mean",
        seed: int = 0,
        temperature: float | None = None,
        candidates: Sequence[Sequence[int]] | npt.NDArray[np.bool_] | Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **plan: Unpack[PlanOptions],
    ) -> Classification:
        """Classifies images.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            rule: When to stop evaluating a class: a name of ``rules.RULES`` or a rule made by hand. "race" is the
                model's calibrated race, or the race of paired tests where there is no calibration for the plan; "full"
                evaluates every class at every draw.
            rule_options: The rule's own options, such as {"alpha": 0.01}.
            decision: "mean" (smallest mean error) or "vote" (most draws won among the classes never dropped).
            seed: Of the noise, in [0, 2^64).
            temperature: Of the posterior; default: the model's, fitted on validation images where it was.
            candidates: Classes to consider for each image: a mask (n, K), lists of class indices, or a prefilter, which
                is called with the images as float32 in [0, 1] and returns either. The rule's guarantee is then about
                the best candidate: a class that the prefilter leaves out can never be the answer.
            streams: See :meth:`errors`.
            progress: Called after every step.
            **plan: Plan options, see the class. Some rules bring their own number of draws.

        Returns:
            Labels, probabilities and what they cost.

        Raises:
            InputError: Images or options cannot be used; before any work starts.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished.
        """
        results = self.stream(
            images,
            chunk=None,
            rule=rule,
            rule_options=rule_options,
            decision=decision,
            seed=seed,
            temperature=temperature,
            candidates=candidates,
            streams=streams,
            progress=progress,
            **plan,
        )
        return next(results)

    def stream(
        self,
        images: Any,
        *,
        chunk: int | None = 64,
        rule: str | AbstractRule = "race",
        rule_options: dict[str, Any] | None = None,
        decision: str = "mean",
        seed: int = 0,
        temperature: float | None = None,
        candidates: Sequence[Sequence[int]] | npt.NDArray[np.bool_] | Candidates | None = None,
        streams: Any = None,
        progress: OnProgress | None = None,
        **plan: Unpack[PlanOptions],
    ) -> Iterator[Classification]:
        """Classifies images in one run, and yields results of consecutive images as soon as they are known.

        The same numbers as :meth:`classify`, which see; arguments are checked when the first result is asked for.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            chunk: Images a result; None: all in one.
            rule: See :meth:`classify`, as for all that follow.
            rule_options: ...
            decision: ...
            seed: ...
            temperature: ...
            candidates: ...
            streams: ...
            progress: ...
            **plan: ...

        Raises:
            InputError: See :meth:`classify`.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished and not yielded yet.
        """
        start = time.perf_counter()
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1):
            raise InputError(f"chunk must be a positive whole number or None, got {chunk!r}")
        settings = self.settings(
            rule=rule, rule_options=rule_options, decision=decision, seed=seed, temperature=temperature, **plan
        )
        job = settings.job
        x = to_model_range(images, self.model)
        noise = streams_of(x) if streams is None else check_streams(streams, len(x))
        chosen = None
        if candidates is not None:
            chosen = check_candidates(candidates, self.model.to_unit(x), self.model)
        rows: Rows = [None] * len(x)

        def result(indices: npt.NDArray[np.int64]) -> Classification:
            table = job.table([rows[i] for i in indices], noise[indices])
            return settings.decide(table, indices, seconds=time.perf_counter() - start)

        size = len(x) if chunk is None else chunk
        given = 0
        try:
            for finished in job.run(x, noise, candidates=chosen, progress=progress):
                for done in finished:
                    rows[done.key] = (done.counts, done.values)
                while given < len(x) and all(row is not None for row in rows[given : given + size]):
                    end = min(given + size, len(x))
                    chunk_result = result(np.arange(given, end, dtype=np.int64))
                    rows[given:end] = [None] * (end - given)  # handed on, and not needed again
                    given = end
                    yield chunk_result
        except KeyboardInterrupt:
            known = np.array([i for i in range(given, len(x)) if rows[i] is not None], dtype=np.int64)
            partial = result(known) if len(known) else None
            raise Interrupted(f"interrupted: {given + len(known)} of {len(x)} images finished", partial) from None

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
                used for results. Labels are not needed. With the plan option sigma, noise is added to them.
            delta: Probability with which the race may lose the class of the full run, at least 1 / (n + 1).
            seeds: Noise seeds of every image.
            progress: Called after every step.
            **plan: Plan options, see the class; the calibration holds for these levels and weights. draws are those of
                the full run, 128 unless given.

        Returns:
            The calibration: classify with ``rule=calibration.rule``, or store it with the model.

        Raises:
            InputError: Images or options cannot be used, or there are too few images for delta.
        """
        if isinstance(seeds, bool) or not isinstance(seeds, (int, np.integer)) or seeds < 1:
            raise InputError(f"seeds must be a positive whole number, got {seeds!r}")
        plan.setdefault("draws", CALIBRATION_DRAWS)
        job = self._job("full", None, 0, plan)
        check_level(delta, len(to_model_range(images, self.model)))  # before the work, not after it
        tables = (
            self.errors(images, seed=seed, progress=progress, **plan).errors
            if job.plan.config.noise == 0
            else self.errors_of_copies(images, number=seed, progress=progress, **plan).errors
            for seed in range(seeds)
        )
        return calibrate_errors(tables, job.plan.config, delta=delta)

    def base(
        self,
        *,
        rule: str | AbstractRule = "race",
        rule_options: dict[str, Any] | None = None,
        seed: int = 0,
        **plan: Unpack[PlanOptions],
    ) -> DiffusionBase:
        """The base classifier of randomized smoothing: this classifier on images with Gaussian noise.

        Args:
            rule: See :meth:`classify`.
            rule_options: See :meth:`classify`.
            seed: Of the noise that the method adds.
            **plan: Plan options, see the class; sigma is needed, and the default method is "epndc", on latents "dc".

        Raises:
            InputError: An option cannot be used.
        """
        plan.setdefault("method", "epndc" if self.model.latent_shape is None else "dc")
        return DiffusionBase(self._job(rule, rule_options, seed, plan))

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
    ) -> Iterator[tuple[int, Certificate]]:
        """Certifies images by randomized smoothing; yields (index, certificate) in order, as soon as they are known.

        Args:
            images: (n, c, h, w), uint8 or float in [0, 1].
            estimation: How a certificate is made: ``estimation.Fixed``, ``Pilot``, ``Target``, ``Anytime``, or
                ``Predict`` for a class without a radius. It has sigma and alpha.
            n0: Selection copies.
            seed: Of the copies' noise.
            base: The base classifier; default: ``base(sigma=sigma, seed=seed)``.
            streams: See :meth:`errors`.
            progress: Called whenever copies were classified.

        Raises:
            InputError: Images or options cannot be used; before any work starts.
        """
        smoothing = Smoothing(estimation, n0=n0, seed=seed)
        chosen = self.base(sigma=smoothing.sigma, seed=seed) if base is None else base
        x = to_model_range(images, self.model)
        noise = streams_of(x) if streams is None else check_streams(streams, len(x))
        if chosen.value_range != self.model.value_range:
            low, high = chosen.value_range
            x = self.model.to_unit(x) * np.float32(high - low) + np.float32(low)
        return certify_images(chosen, x, noise, smoothing, progress=progress)

    def certify(self, images: Any, estimation: AbstractEstimation, **options: Any) -> list[Certificate]:
        """Certificates of all images, in order: see :meth:`certify_stream`."""
        return [certificate for _, certificate in self.certify_stream(images, estimation, **options)]

    def as_module(self, **options: Any) -> Any:
        """The classifier as a differentiable ``torch.nn.Module``: see :func:`fastdc.robust.as_module`."""
        from fastdc.robust import as_module

        return as_module(self, **options)

    def maximize_likelihood(self, images: Any, **options: Any) -> npt.NDArray[np.float32]:
        """Images moved towards higher likelihood: see :func:`fastdc.robust.maximize_likelihood`."""
        from fastdc.robust import maximize_likelihood

        return maximize_likelihood(self, images, **options)

    def _job(self, rule: str | AbstractRule, rule_options: dict[str, Any] | None, seed: Any, plan: PlanOptions) -> Job:
        return Job.of(self.model, self.network, rule, rule_options, seed, plan, self.encoder)

    def settings(
        self,
        *,
        rule: str | AbstractRule,
        rule_options: dict[str, Any] | None,
        decision: str,
        seed: int,
        temperature: float | None,
        **plan: Unpack[PlanOptions],
    ) -> Settings:
        """The options of :meth:`classify`, checked and complete; for what runs them in its own way.

        Raises:
            InputError: An option cannot be used.
        """
        _check_choice("decision", decision, DECISIONS)
        value = self.model.defaults.temperature if temperature is None else temperature
        if not checks.is_number(value) or not 0 < value < float("inf"):
            raise InputError(f"temperature must be positive, got {value!r}")
        job = self._job(rule, rule_options, seed, plan)
        return Settings(job=job, decision=decision, temperature=float(value))


def _table(
    job: Job, x: npt.NDArray[np.float32], streams: npt.NDArray[np.int64], progress: OnProgress | None
) -> ErrorTable:
    rows: Rows = [None] * len(x)
    for finished in job.run(x, streams, progress=progress):
        for done in finished:
            rows[done.key] = (done.counts, done.values)
    return job.table(rows, streams)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")
